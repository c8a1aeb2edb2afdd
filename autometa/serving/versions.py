"""Adapted versions of a model on disk: numbered artefacts beside it, and one index that says which one serves.

::

    model/               version 1, never touched
    model.versions/
      index.json         which version serves, and where each one comes from; replaced in one step
      0002/              an artefact
      lock               held while a version is made, so that worker processes take turns
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autometa.exceptions import ArtefactError
from autometa.persistence import load, save
from autometa.predictor import Predictor
from autometa.serving.problems import RequestProblem

_ORIGINAL = 1
_KEPT = 20


@dataclass(frozen=True, eq=False)
class Version:
    """A model and its number; 1 is the one that the service was started with."""

    number: int
    predictor: Predictor


class VersionStore:
    """Which version serves. Safe to use from several threads and, where there are POSIX locks, several processes.

    Parameters
    ----------
    model : Path
        Artefact of version 1.
    folder : Path
        Of the other versions; made when the first one is.
    """

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._mutex = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._current = Version(_ORIGINAL, load(model))
        self.current()

    def current(self) -> Version:
        """The version that serves now; loaded anew where another process has changed it."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            number = self._index()["current"]
            if number != self._current.number:
                self._current = Version(number, load(self._path(number)))
            self._stamp = stamp
        return self._current

    def history(self) -> dict[str, Any]:
        """``current`` and ``versions``, the oldest first; each with ``version``, ``based_on``, ``created``, details."""
        index = self._index()
        return {**index, "versions": [{"version": _ORIGINAL, "based_on": None}, *index["versions"]]}

    def add(self, change: Callable[[Predictor], tuple[Predictor, dict[str, Any]]]) -> dict[str, Any]:
        """Make a version from the one that serves, save it, and let it serve. Returns its entry.

        Parameters
        ----------
        change : callable
            ``change(predictor) -> (predictor, details)``; the details are JSON and stand in the index.
        """
        with self._locked():
            base = self.current()
            index = self._index()
            number = 1 + max([_ORIGINAL, *(entry["version"] for entry in index["versions"])])
            predictor, details = change(base.predictor)
            shutil.rmtree(self._path(number), ignore_errors=True)  # left by a process that was killed
            save(predictor, self._path(number))
            created = datetime.now(UTC).isoformat(timespec="seconds")
            entry = {"version": number, "based_on": base.number, "created": created, **details}
            dropped = index["versions"][: max(0, len(index["versions"]) + 1 - _KEPT)]
            self._write({"current": number, "versions": [*index["versions"][len(dropped) :], entry]})
            for old in dropped:
                shutil.rmtree(self._path(old["version"]), ignore_errors=True)
            self._current, self._stamp = Version(number, predictor), self._read_stamp()
        return entry

    def rollback(self, number: int | None = None) -> int:
        """Let an older version serve: the given one, or the one that the current one is based on.

        Raises
        ------
        RequestProblem
            422 where there is no such version, or none before.
        """
        with self._locked():
            index = self._index()
            known = {entry["version"]: entry["based_on"] for entry in index["versions"]} | {_ORIGINAL: None}
            wanted = known[index["current"]] if number is None else number
            if wanted is None:
                raise RequestProblem(422, "There is no version before the one that serves.")
            if wanted not in known:
                listed = ", ".join(map(str, sorted(known)))
                raise RequestProblem(422, f"version must be one of {listed}. Got {wanted!s:.20} instead.")
            self._write({**index, "current": wanted})
            self.current()
        return int(wanted)

    def _path(self, number: int) -> Path:
        return self.model if number == _ORIGINAL else self.folder / f"{number:04d}"

    def _read_stamp(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.folder / "index.json")
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _index(self) -> dict[str, Any]:
        try:
            index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            return {"current": int(index["current"]), "versions": list(index["versions"])}
        except FileNotFoundError:
            return {"current": _ORIGINAL, "versions": []}
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"The index in {str(self.folder)!r} is damaged: {error!s:.100}") from error

    def _write(self, index: dict[str, Any]) -> None:
        scratch = self.folder / f"index.{os.getpid()}.tmp"
        scratch.write_text(json.dumps(index, indent=1), encoding="utf-8")
        os.replace(scratch, self.folder / "index.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._mutex, open(self.folder / "lock", "w") as file:
            try:
                import fcntl
            except ImportError:  # no POSIX locks: one worker process only
                yield
                return
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
