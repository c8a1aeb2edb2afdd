"""Files that a process and its workers share, in a folder that does not outlive them for long."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from filelock import FileLock, Timeout

_PREFIX = "autometa-"
_LOCK = "lock"
_SURELY_LOCKED = 60.0


@dataclass(frozen=True, eq=False)
class SharedFile:
    """A file of the folder; it is removed when the owner's last reference to this object goes."""

    path: str

    def load(self) -> Any:
        """The array (read-only, mapped) or object in it; a process keeps the last few."""
        return _load_file(self.path)


@lru_cache(maxsize=8)
def _load_file(path: str) -> Any:
    if path.endswith(".npy"):
        return np.asarray(np.load(path, mmap_mode="r"))
    return cloudpickle.loads(Path(path).read_bytes())


class SharedFolder:
    """A temporary folder for :class:`SharedFile`, removed by :meth:`cleanup` and when the interpreter ends.

    A process that is killed leaves its folder behind, and with it a person's table. So the owner holds a lock on the
    folder, which the system takes back with the process, and every new folder removes those that nobody holds.

    Examples
    --------
    >>> folder = SharedFolder()
    >>> folder.share({"a": 1}).load()
    {'a': 1}
    >>> folder.cleanup()
    """

    def __init__(self) -> None:
        remove_abandoned()
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        self._lock = FileLock(Path(self._folder.name) / _LOCK, thread_local=False)
        self._lock.acquire()
        self._n_files = 0

    def share(self, value: Any) -> SharedFile:
        """Write an array or an object to a file that every process reads once (arrays are mapped, not copied)."""
        if isinstance(value, np.ndarray) and value.size:  # an empty file cannot be mapped
            file = self.new_file(".npy")
            np.save(file.path, value)
        else:
            file = self.new_file(".pkl")
            Path(file.path).write_bytes(cloudpickle.dumps(value))
        return file

    def new_file(self, suffix: str = "") -> SharedFile:
        """A name that is not in use; nothing is written."""
        self._n_files += 1
        file = SharedFile(str(Path(self._folder.name) / f"{self._n_files}{suffix}"))
        weakref.finalize(file, _remove, file.path)
        return file

    def cleanup(self) -> None:
        """Remove all files. Twice is fine."""
        self._lock.release()
        self._folder.cleanup()


def remove_abandoned() -> None:
    """Remove the folders whose owners have died, as far as this user may."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError, Timeout):
            if time.time() - lock.stat().st_mtime > _SURELY_LOCKED:  # its owner has had time to lock it
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)
