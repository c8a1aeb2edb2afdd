"""Errors that a caller may want to catch by name. Everything else is a plain ``ValueError`` or ``TypeError``."""


class AutometaError(Exception):
    """Root of every error that ``autometa`` raises on purpose."""


class DataError(AutometaError, ValueError):
    """The table or the target cannot be used as it is; the message says what to do."""


class FamilyUnavailable(AutometaError):
    """A model family cannot be used here: its package is missing or the dataset is outside its limits."""


class TrainingDiverged(AutometaError):
    """The loss of a net became NaN or infinite."""


class ArtefactError(AutometaError, ValueError):
    """A saved file is missing, damaged, too large or of an unknown format."""


class ExperienceError(AutometaError):
    """The store of a person's own runs is damaged, locked, out of reach, empty or of another format."""


class StorageError(AutometaError, OSError):
    """The storage of a search cannot be opened or reached."""


class LeakageError(AutometaError):
    """A dataset that the meta-model was trained on would be used to test it."""


class NoModelError(AutometaError, RuntimeError):
    """No candidate could be fitted within the limits; the ledger lists the reasons."""
