"""Where a net is trained, and why there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
_GPU_MIN_ROWS = 10_000


@dataclass(frozen=True)
class DeviceReport:
    """The device of a fit.

    Parameters
    ----------
    device : str
        "cpu", "cuda" or "mps" (or one of several, as "cuda:1").
    name : str
        What the device is called by its maker, or "CPU".
    reason : str
        Why it was taken; a GPU that is there and not used is named here.
    """

    device: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.device} ({self.name}): {self.reason}"


def choose_device(requested: str = "auto", *, n_rows: int | None = None) -> DeviceReport:
    """The device to train on.

    Parameters
    ----------
    requested : {"auto", "cpu", "cuda", "mps"} or "cuda:<index>", default "auto"
        "auto" takes a GPU that works, unless the table has fewer than 10,000 rows: a small net on a small table is
        bound by the overhead of single operations, which a GPU does not lower.
    n_rows : int or None
        Training rows, for "auto".

    Raises
    ------
    ValueError
        The device is unknown or cannot be used here; the message says why.
    """
    if requested.partition(":")[0] not in DEVICES:
        raise ValueError(f"The device must be one of {', '.join(DEVICES)}. Got {requested!r} instead.")
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if requested == "cpu":
        return DeviceReport("cpu", "CPU", "asked for" + (f"; {_describe(gpu)} is there and unused" if gpu else ""))
    if requested != "auto":
        _check_usable(requested)
        return DeviceReport(requested, _describe(requested), "asked for")
    if gpu is None:
        hidden = _hidden_gpu()
        return DeviceReport("cpu", "CPU", hidden or "no GPU was found")
    if n_rows is not None and n_rows < _GPU_MIN_ROWS:
        reason = f"{_describe(gpu)} is there and unused: a table of {n_rows} rows trains as fast on the CPU"
        return DeviceReport("cpu", "CPU", reason)
    return DeviceReport(gpu, _describe(gpu), "a GPU was found")


def _describe(device: str) -> str:
    return str(torch.cuda.get_device_name(device)) if device.startswith("cuda") else "Apple GPU"


def _check_usable(requested: str) -> None:
    kind, _, index = requested.partition(":")
    usable = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    if not usable:
        why = _hidden_gpu() or "no GPU was found"
        raise ValueError(f"The device {requested!r} cannot be used: {why}. Pass device='auto' or 'cpu'.")
    if index and (not index.isdigit() or int(index) >= torch.cuda.device_count()):
        raise ValueError(f"The device {requested!r} does not exist: there are {torch.cuda.device_count()} GPUs.")


def _hidden_gpu() -> str:
    """Why an NVIDIA GPU of this machine cannot be used, or an empty text if there is none."""
    if not (os.path.isdir("/proc/driver/nvidia/gpus") or shutil.which("nvidia-smi")):
        return ""
    if torch.version.cuda is None:
        return "an NVIDIA GPU is there and unused: this build of PyTorch has no CUDA"
    return "an NVIDIA GPU is there and unused: its driver does not answer or CUDA_VISIBLE_DEVICES hides it"


@contextmanager
def torch_threads(n_threads: int | None) -> Iterator[None]:
    """At most ``n_threads`` CPU threads inside the block; ``None`` changes nothing."""
    before = torch.get_num_threads()
    if n_threads is None or n_threads == before:
        yield
        return
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU, or of the machine, is used up."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
