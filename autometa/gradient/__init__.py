"""The one gradient loop and what it is made of: schedules, optimisers, initialisation."""
