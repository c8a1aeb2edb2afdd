"""A training on disk: safetensors with a JSON header, never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autometa.exceptions import ArtefactError

_FORMAT = "autometa-checkpoint-1"


@dataclass
class Progress:
    """How far a training has come.

    Parameters
    ----------
    batch_size : int
        Rows a step from now on.
    train_loss, validation_loss : list of float
        One value per finished epoch.
    best_loss : float
    best_epoch : int
        Epoch (from 1) with the best weights; 0 before the first.
    """

    batch_size: int
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_loss: float = float("inf")
    best_epoch: int = 0


def save_checkpoint(
    path: str | Path,
    signature: Mapping[str, object],
    progress: Progress,
    tensors: Mapping[str, Tensor],
    n_steps: int,
) -> None:
    """Write a checkpoint so that the file is always a whole one: to a neighbour first, then renamed."""
    path = Path(path)
    header = {"signature": dict(signature), "progress": asdict(progress), "n_steps": n_steps}
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f"{path.name}.{os.getpid()}.part")
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(on_cpu, neighbour, metadata={"format": _FORMAT, "training": json.dumps(header)})
    os.replace(neighbour, path)


def load_checkpoint(path: str | Path, signature: Mapping[str, object]) -> tuple[Progress, dict[str, Tensor], int]:
    """Progress, tensors (on the CPU) and number of steps of a checkpoint.

    Raises
    ------
    ArtefactError
        The file is damaged, or its training had another plan, seed or net.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise ArtefactError(f"The checkpoint {str(path)!r} must have the format {_FORMAT}. Delete the file.")
        header = json.loads(metadata["training"])
        progress, n_steps = Progress(**header["progress"]), int(header["n_steps"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"The checkpoint {str(path)!r} cannot be read ({error}). Delete the file.") from error
    if header["signature"] != dict(signature):
        raise ArtefactError(
            f"The checkpoint {str(path)!r} belongs to another training: {header['signature']}, "
            f"wanted {dict(signature)}. Delete the file or pass another path."
        )
    return progress, tensors, n_steps
