"""Predictions of several requests in one call of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.exceptions import DataError
from autometa.predictor import Predictor
from autometa.serving.problems import RequestProblem
from autometa.serving.schema import Row, RowSchema
from autometa.serving.versions import Version

Rows = list[Row] | pd.DataFrame
_UNUSABLE = (ValueError, TypeError, LookupError, ArithmeticError)


@dataclass(frozen=True, eq=False)
class Answer:
    """Raw predictions of one request and the version that made them."""

    version: int
    raw: NDArray[np.float64]
    classes: NDArray[Any] | None

    def document(self, proba: bool) -> dict[str, Any]:
        """``version``, ``predictions`` and, if asked for, ``classes`` and ``probabilities``."""
        if self.classes is None:
            values = [value if math.isfinite(value) else None for value in self.raw.tolist()]
            return {"version": self.version, "predictions": values}
        found: dict[str, Any] = {"version": self.version,
                                 "predictions": self.classes[self.raw.argmax(axis=1)].tolist()}  # fmt: skip
        if proba:
            found |= {"classes": self.classes.tolist(), "probabilities": self.raw.tolist()}
        return found


def predict_together(version: Version, items: Sequence[Rows], schema: RowSchema) -> list[Answer | Exception]:
    """One answer per item. JSON rows are put into one table; if that fails, each request answers for itself."""
    together = [item for item in items if isinstance(item, list)]
    answers = iter(_predict_rows(version, together, schema))
    return [next(answers) if isinstance(item, list) else _predict_frame(version, item) for item in items]


def _predict_rows(version: Version, items: Sequence[list[Row]], schema: RowSchema) -> list[Answer | Exception]:
    if len(items) > 1:
        whole = _predict_frame(version, schema.frame([row for rows in items for row in rows]))
        if isinstance(whole, Exception):
            return [_predict_frame(version, schema.frame(rows)) for rows in items]
        ends = np.cumsum([len(rows) for rows in items])[:-1]
        return [Answer(whole.version, part, whole.classes) for part in np.split(whole.raw, ends)]
    return [_predict_frame(version, schema.frame(rows)) for rows in items]


def _predict_frame(version: Version, frame: pd.DataFrame) -> Answer | RequestProblem:
    predictor: Predictor = version.predictor
    try:
        return Answer(version.number, predictor.predict_raw(frame), predictor.classes)
    except DataError as error:
        return RequestProblem(422, f"{error!s:.400}")
    except _UNUSABLE as error:  # libraries may quote cells, so only the kind is told
        return RequestProblem(422, f"The rows cannot be predicted: {type(error).__name__}. Compare them with /schema.")
