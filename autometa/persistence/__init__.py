"""Models as files: a JSON manifest and data-only parts, sealed, never pickle."""

from autometa.persistence.artefact import FORMAT_VERSION, load, read_manifest, save

__all__ = ["FORMAT_VERSION", "load", "read_manifest", "save"]
