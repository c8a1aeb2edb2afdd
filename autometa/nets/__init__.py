"""Pure torch modules."""
