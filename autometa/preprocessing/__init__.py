"""Table to matrix, once per dataset: what a fitted model needs to read a row again, as plain data."""

from autometa.preprocessing.encoder import TableEncoder, encode_dataset, n_leading_categories

__all__ = ["TableEncoder", "encode_dataset", "n_leading_categories"]
