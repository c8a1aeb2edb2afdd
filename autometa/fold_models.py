"""The models of a candidate's folds in a file: written in the worker that fitted them, read when they are wanted."""

from __future__ import annotations

import contextlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

import cloudpickle

from autometa.fitting import FittedModel
from autometa.frozen_models import freeze

MAX_FOLD_MODELS = 5
"""Of repeated cross-validation the first repeat is kept."""
_MAX_BYTES = 64 * 2**20


class FoldModels:
    """The models of the first folds in a file, in the form that is kept; none of them if they are too large.

    A thread freezes and writes them beside the next fits: it can take as long as a quick fit, and most of it is in
    libraries that leave the interpreter to others meanwhile. Use it in ``with``, which waits for the thread.

    Parameters
    ----------
    path : str or None
        ``None``: nothing is kept.
    """

    def __init__(self, path: str | None) -> None:
        self._path, self._n_models, self._n_bytes = path, 0, 0
        self._writer = ThreadPoolExecutor(1, "autometa-fold-models")
        self._last: Future[None] | None = None

    def add(self, model: FittedModel) -> None:
        """Have a model written, if it is one of the first folds."""
        if self._path is not None and self._n_models < MAX_FOLD_MODELS:
            self._n_models += 1
            self._last = self._writer.submit(self._write, model)

    def wait(self) -> None:
        """Until all models that were added are in the file."""
        if self._last is not None:
            self._last.result()

    def discard(self) -> None:
        """Keep no model of this candidate."""
        self.wait()
        if self._path is not None:
            Path(self._path).unlink(missing_ok=True)
        self._path = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()

    def _write(self, model: FittedModel) -> None:
        if self._path is None:
            return
        content = io.BytesIO()
        with contextlib.suppress(Exception):  # a model that cannot travel is fitted again in the end
            cloudpickle.dump(replace(model, estimator=freeze(model.estimator)), content)
            self._n_bytes += content.tell()
            if self._n_bytes <= _MAX_BYTES:
                with open(self._path, "ab") as file:
                    file.write(content.getbuffer())
                return
        Path(self._path).unlink(missing_ok=True)
        self._path = None


def read_fold_models(path: str) -> list[FittedModel]:
    """The models that a worker of this session has written; a last one that was cut off is left out."""
    models: list[FittedModel] = []
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file, contextlib.suppress(Exception):
        while len(models) < MAX_FOLD_MODELS:
            models.append(cloudpickle.load(file))
    return models
