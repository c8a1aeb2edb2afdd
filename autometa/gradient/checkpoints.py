"""A training on disk: safetensors with a JSON header, never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autometa.exceptions import ArtefactError

_FORMAT = "autometa-checkpoint-2"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], *, kind: str, header: Mapping[str, Any]) -> None:
    """Write one safetensors file so that it is always a whole one: to a neighbour first, then renamed.

    Parameters
    ----------
    path : path
        Its folder is made.
    tensors : mapping of str to Tensor
        Are brought to the CPU.
    kind : str
        What :func:`read_tensors` has to ask for.
    header : mapping
        Goes into the file as JSON.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f"{path.name}.{os.getpid()}.part")
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(on_cpu, neighbour, metadata={"format": kind, "header": json.dumps(dict(header))})
    os.replace(neighbour, path)


def read_tensors(path: str | Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors (on the CPU) of what :func:`write_tensors` wrote.

    Raises
    ------
    ArtefactError
        The file is not there, damaged, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, header = metadata.get("format"), json.loads(metadata.get("header", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"The file {str(path)!r} cannot be read ({error}).") from error
    if found != kind or not isinstance(header, dict):
        raise ArtefactError(f"The file {str(path)!r} must have the format {kind}. Got {found!r} instead: make it anew.")
    return header, tensors


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
    """Write a checkpoint; the file is always a whole one."""
    header = {"signature": dict(signature), "progress": asdict(progress), "n_steps": n_steps}
    write_tensors(path, tensors, kind=_FORMAT, header=header)


def load_checkpoint(path: str | Path, signature: Mapping[str, object]) -> tuple[Progress, dict[str, Tensor], int]:
    """Progress, tensors (on the CPU) and number of steps of a checkpoint.

    Raises
    ------
    ArtefactError
        The file is damaged, or its training had another plan, seed or net.
    """
    try:
        header, tensors = read_tensors(path, kind=_FORMAT)
        progress, n_steps = Progress(**header["progress"]), int(header["n_steps"])
        known = header["signature"]
    except (ArtefactError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"The checkpoint {str(path)!r} cannot be read ({error}). Delete the file.") from error
    if known != dict(signature):
        raise ArtefactError(
            f"The checkpoint {str(path)!r} belongs to another training: {known}, "
            f"wanted {dict(signature)}. Delete the file or pass another path."
        )
    return progress, tensors, n_steps
