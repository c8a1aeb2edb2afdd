"""A saved model behind HTTP: predictions, adaptation, health and metrics. Needs the extra ``[serve]``."""

from autometa.serving.settings import ServiceSettings

__all__ = ["ServiceSettings"]
