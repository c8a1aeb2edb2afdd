"""Where studies are kept: an SQLite file, an Optuna journal or a database."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from autometa.exceptions import StorageError

_SQLITE_SECONDS = 30.0
_OPENINGS = 5
_SQLITE = frozenset({".db", ".sqlite", ".sqlite3"})


def as_storage(storage: Any) -> BaseStorage:
    """An Optuna storage from a path, a URL or a storage.

    Parameters
    ----------
    storage : str, path or optuna storage
        A file that ends in ``.db``, ``.sqlite`` or ``.sqlite3`` is an SQLite database, any other file an Optuna
        journal, and what contains ``://`` the URL of a database.

    Raises
    ------
    ValueError
        It is none of these.
    StorageError
        It cannot be opened; one sentence says why.
    """
    if isinstance(storage, BaseStorage):
        return storage
    if not isinstance(storage, str | os.PathLike):
        raise ValueError(f"storage must be a file, the URL of a database or an Optuna storage. Got {storage!r}.")
    text = os.fspath(storage)
    try:
        if "://" in text:
            return _database(text)
        path = Path(text)
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        return _database(f"sqlite:///{path}") if path.suffix in _SQLITE else _journal(path)
    except ImportError as error:
        hint = "For PostgreSQL install 'autometa-ml[postgres]' and use postgresql+psycopg://user@host/name."
        raise StorageError(
            f"The storage {_shown(text)!r} needs a driver that is not installed: {error}. {hint}"
        ) from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(f"The storage {_shown(text)!r} cannot be opened: {reason}") from error


def _database(url: str) -> BaseStorage:
    options = {"connect_args": {"timeout": _SQLITE_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for attempt in range(_OPENINGS):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except ImportError:
            raise
        except Exception:  # two processes that make the tables at the same time get into each other's way
            if attempt == _OPENINGS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError


class _KernelLock:
    """A lock that goes with its process: a killed one does not keep the next waiting, as Optuna's own locks do."""

    def __init__(self, path: str) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _journal(path: Path) -> BaseStorage:
    lock: Any = _KernelLock(f"{path}.flock")  # Optuna's class of locks is not public
    if path.exists():
        lock.acquire()
        try:
            _cut_torn_line(path)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _cut_torn_line(path: Path) -> None:
    """Remove a last line that a power cut left unfinished; Optuna would refuse the whole journal."""
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        tail = min(size, 2**20)
        file.seek(size - tail)
        content = file.read(tail)
        if content and not content.endswith(b"\n"):
            file.truncate(size - tail + content.rfind(b"\n") + 1)


def _shown(url: str) -> str:
    """A URL without its password."""
    if "://" not in url:
        return url
    from sqlalchemy.engine import make_url

    with contextlib.suppress(Exception):
        return make_url(url).render_as_string(hide_password=True)
    return url.split("@")[-1]
