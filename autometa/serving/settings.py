"""What a service is told when it starts, and how that reaches its worker processes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

VARIABLE = "AUTOMETA_SERVE"
KEY_VARIABLE = "AUTOMETA_API_KEY"


@dataclass(frozen=True)
class ServiceSettings:
    """Where the model is and what a client may ask for.

    Parameters
    ----------
    model : str
        Artefact that :func:`autometa.save` wrote.
    versions : str or None, default=None
        Folder of adapted versions; ``None``: ``<model>.versions`` beside the model.
    max_body_bytes : int, default=8 MiB
    max_rows : int, default=10_000
        Rows of one request.
    timeout_seconds : float, default=10.0
        To receive a body, and again to answer it.
    adaptation : bool, default=True
        Whether /adapt and /rollback are there.
    log_data : bool, default=False
        Whether bodies are logged. Without it, logs hold no cell of any table.
    """

    model: str
    versions: str | None = None
    max_body_bytes: int = 8 * 1024**2
    max_rows: int = 10_000
    timeout_seconds: float = 10.0
    adaptation: bool = True
    log_data: bool = False

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_rows", "timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0. Got {getattr(self, name)!r} instead.")

    @property
    def versions_path(self) -> Path:
        """Folder of the adapted versions."""
        model = Path(self.model)
        return Path(self.versions) if self.versions else model.with_name(f"{model.name}.versions")

    def to_environment(self) -> None:
        """Leave the settings for worker processes that start later."""
        os.environ[VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> Self:
        """What :meth:`to_environment` left."""
        return cls(**json.loads(os.environ[VARIABLE]))


def api_key() -> str | None:
    """The key that clients must send, from the environment; ``None`` where none is set."""
    return os.environ.get(KEY_VARIABLE) or None
