"""Meta-features: a fixed vector of numbers that describes any table, in a fraction of a second."""

from autometa.meta_features.extraction import (
    FEATURE_GROUPS,
    FEATURE_NAMES,
    VERSION,
    MetaFeatures,
    describe,
    describe_all,
    extract,
)
from autometa.meta_features.landmarkers import constant_scores

__all__ = [
    "FEATURE_GROUPS",
    "FEATURE_NAMES",
    "VERSION",
    "MetaFeatures",
    "constant_scores",
    "describe",
    "describe_all",
    "extract",
]
