"""PyTorch meta-model: meta-features and candidates in, a joint belief over scores out."""

from autometa.meta_model.belief import Belief
from autometa.meta_model.model import MetaModel

__all__ = ["Belief", "MetaModel"]
