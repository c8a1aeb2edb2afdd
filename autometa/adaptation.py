"""adapt: a fitted model and a few labelled rows of where it is used now become a model for there.

A model that brings a learned birth (``MetaInitializer``) starts from it again, on every labelled row that it was told
of; any other one is corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.correction import Correction
from autometa.data import as_frame, as_series
from autometa.exceptions import DataError
from autometa.predictor import Predictor
from autometa.preprocessing import TableEncoder

Floats = NDArray[np.float64]
Penalties = tuple[float, float, float]

Adapter = Callable[[Predictor, Any, Any], Predictor]
"""``adapt(predictor, X, y) -> predictor``: what a service may be given instead of :func:`adapt`."""

_NEVER = 1e12
_GRID: tuple[Penalties, ...] = (
    (_NEVER, _NEVER, _NEVER), (1.0, _NEVER, _NEVER), (1.0, 10.0, _NEVER),
    *((1.0, 10.0, strength) for strength in (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0)),
)  # fmt: skip
"""Ridge penalties of intercept, slope and columns, from no change at all to a free one."""
_MAX_FOLDS = 5


LEARNED_BIRTH, CORRECTION = "learned birth", "correction"
"""The ways to adapt; see :func:`way_to_adapt`."""


def way_to_adapt(predictor: Predictor) -> str:
    """How :func:`adapt` would go about it: "learned birth" or "correction"."""
    models = [model for member in predictor.members if member.weight > 0 for model in member.models]
    is_born = len(models) == 1 and hasattr(models[0], "birth") and predictor.correction is None
    return LEARNED_BIRTH if is_born else CORRECTION


def adapt(predictor: Predictor, X: Any, y: Any) -> Predictor:
    """A model for the rows where it is used now.

    A net with a learned birth takes a few steps from there, see :func:`adapt_birth`. Of any other model the fitted
    members stay as they are (a warm start); what is learned is an affine map of their output and a linear
    term in the encoded columns, under ridge penalties towards "no change". Penalties are chosen by cross-validation
    on the rows given: a larger change must beat a smaller one by more than the standard error of the gain. Adapting
    again starts from the adapted model.

    Parameters
    ----------
    predictor : Predictor
    X : DataFrame or array of shape (n_rows, n_features)
        Raw rows, as for ``predict``.
    y : array-like of shape (n_rows,)
        Labels of classes that the model knows, or values. Missing ones are left out.

    Returns
    -------
    Predictor

    Raises
    ------
    DataError
        There is no labelled row, a label is unknown, or the table cannot be read.

    Notes
    -----
    The offset of a fixed model under a penalised linear correction is the simplest case of hypothesis transfer
    (Kuzborskij and Orabona, 2013).
    """
    if way_to_adapt(predictor) == LEARNED_BIRTH:
        return adapt_birth(predictor, X, y)
    frame, codes = _some_labelled(predictor, X, y)
    encoder = predictor.encoders.get("linear") or _encoder(predictor, frame)
    encoded = replace(predictor, encoders={**predictor.encoders, "linear": encoder})
    matrix = encoder.transform(frame)
    old = predictor.correction or Correction.none(matrix.shape[1], predictor.n_classes or 1)
    base = old.outputs(encoded.predict_uncorrected(frame), matrix)
    fit = _fit_values if predictor.classes is None else _fit_classes
    return replace(encoded, correction=old.then(fit(base, matrix.astype(np.float64), codes)))


def adapt_birth(predictor: Predictor, X: Any, y: Any, *, n_steps: int | None = None) -> Predictor:
    """A net of ``MetaInitializer``, moved from its birth by gradient steps on all rows that it was ever given.

    Parameters
    ----------
    predictor : Predictor
        One for which :func:`way_to_adapt` says "learned birth".
    X, y
        As for :func:`adapt`.
    n_steps : int or None
        ``None``: as many as the birth was trained for, or from 30 rows on what cross-validation chooses; 0: the birth
        itself.

    Raises
    ------
    DataError
        As :func:`adapt`.
    """
    frame, codes = _some_labelled(predictor, X, y)
    member = next(member for member in predictor.members if member.weight > 0)
    matrix = predictor.encoders[member.matrix].transform(frame)
    adapted = member.models[0].adapt(matrix, codes, n_steps=n_steps)
    return replace(predictor, members=(replace(member, models=(adapted,)),))


def mean_loss(predictor: Predictor, X: Any, y: Any) -> float:
    """How far a model is off on labelled rows: root mean squared error, or log loss in nats; NaN without a row."""
    frame, codes = _labelled(predictor, X, y)
    if len(codes) == 0:
        return float("nan")
    raw = predictor.predict_raw(frame)
    if predictor.classes is None:
        return float(np.sqrt(np.mean((raw - codes) ** 2)))
    return float(-np.log(np.maximum(raw[np.arange(len(codes)), codes], 1e-15)).mean())


def adaptation_details(before: Predictor, after: Predictor, X: Any, y: Any) -> dict[str, Any]:
    """What an adaptation to these rows did, as JSON.

    Returns
    -------
    dict
        ``way`` (see :func:`way_to_adapt`), ``n_rows``, ``loss`` ("rmse" or "log_loss"), ``loss_before`` (on rows that
        the model had not seen: an honest error) and ``loss_after`` (on the rows that it has now learned from).
    """
    return {
        "way": way_to_adapt(before), "n_rows": len(as_series(y)),
        "loss": "rmse" if before.classes is None else "log_loss",
        "loss_before": mean_loss(before, X, y), "loss_after": mean_loss(after, X, y),
    }  # fmt: skip


def _some_labelled(predictor: Predictor, X: Any, y: Any) -> tuple[Any, NDArray[Any]]:
    frame, codes = _labelled(predictor, X, y)
    if len(codes) == 0:
        raise DataError("At least one row with a target is needed to adapt a model.")
    return frame, codes


def _labelled(predictor: Predictor, X: Any, y: Any) -> tuple[Any, NDArray[Any]]:
    """Rows with a target, and the target as values or class codes."""
    frame, target = as_frame(X), as_series(y)
    if len(frame) != len(target):
        raise DataError(f"X and y must have the same number of rows. Got {len(frame)} and {len(target)}.")
    known = target.notna().to_numpy()
    return frame.loc[known], read_target(predictor, target[known].tolist())


def read_target(predictor: Predictor, values: list[Any]) -> NDArray[Any]:
    """Values as float64, or labels as class codes; 1, 1.0 and "1" are the same label.

    Raises
    ------
    DataError
        A value is no finite number, or a label is none of the model's.
    """
    if predictor.classes is None:
        try:
            numbers = np.array([float(value) for value in values], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise DataError("The target must be a number in every row.") from None
        if not (np.abs(numbers) < 1e150).all():
            raise DataError("The target must be finite, and below 1e150, in every row.")
        return numbers
    labels = predictor.classes.tolist()
    codes = {_label_key(label): code for code, label in enumerate(labels)}
    found = [codes.get(_label_key(value), -1) for value in values]
    if -1 in found:
        listed = ", ".join(map(repr, labels[:10]))
        raise DataError(f"The target must be one of {listed}. Got {values[found.index(-1)]!r:.60} instead.")
    return np.array(found, dtype=np.int64)


def _label_key(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _encoder(predictor: Predictor, frame: Any) -> TableEncoder:
    """The "linear" encoding learned from the new rows, where no member brings one."""
    kinds = {column.name: column.kind for column in predictor.columns}
    names = [name for name in kinds if name in frame.columns]
    if not names:
        return TableEncoder("linear").fit(frame)
    return TableEncoder("linear", {name: kinds[name] for name in names}).fit(frame[names])


def _fit_values(base: Floats, matrix: Floats, y: Floats) -> Correction:
    """Ridge regression of what the model misses, penalties by leave-one-out in closed form."""
    center, scale = base.mean(), base.std() or 1.0
    missed = y - base[:, 0]
    design = np.column_stack([np.ones(len(y)), (base[:, 0] - center) / scale, matrix])  # (n_rows, 2 + n_columns)
    gram, aims = design.T @ design, design.T @ missed
    best, coefficients = missed**2, np.zeros(design.shape[1])
    for penalties in _GRID:
        strength = np.array([*penalties[:2], *[penalties[2]] * matrix.shape[1]])
        inverse = np.linalg.inv(gram + np.diag(strength))
        found = inverse @ aims
        leverage = ((design @ inverse) * design).sum(axis=1)
        errors = ((missed - design @ found) / np.maximum(1.0 - leverage, 1e-9)) ** 2
        if _is_better(errors, best):
            best, coefficients = errors, found
    slope = coefficients[1] / scale
    intercept = np.array([coefficients[0] - slope * center])
    return Correction(1.0 + slope, intercept, coefficients[2:, None], n_rows=len(y))


def _fit_classes(base: Floats, matrix: Floats, codes: NDArray[np.int64]) -> Correction:
    """Penalised multinomial regression on top of the model's log-probabilities, penalties by cross-validation."""
    n_rows = len(codes)
    n_folds = min(_MAX_FOLDS, n_rows) if n_rows > 1 else 0
    folds = np.random.default_rng(0).permutation(n_rows) % max(1, n_folds)
    losses = np.zeros((len(_GRID), n_rows))
    for fold in range(n_folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        for i, penalties in enumerate(_GRID):
            found = _descend(base[train], matrix[train], codes[train], penalties)
            outputs = found.slope * base[test] + found.intercept + matrix[test] @ found.weights
            losses[i, test] = _log_loss(outputs, codes[test])
    chosen = 0
    for i in range(1, len(_GRID)):
        chosen = i if _is_better(losses[i], losses[chosen]) else chosen
    return _descend(base, matrix, codes, _GRID[chosen])


def _descend(base: Floats, matrix: Floats, codes: NDArray[np.int64], penalties: Penalties) -> Correction:
    from scipy.optimize import minimize

    n_rows, n_classes = base.shape
    columns = matrix[:, : matrix.shape[1] if penalties[2] < _NEVER else 0]
    wanted = np.eye(n_classes)[codes]
    strength = np.repeat(penalties, [n_classes, 1, columns.shape[1] * n_classes])

    def objective(theta: Floats) -> tuple[float, Floats]:
        weights = theta[n_classes + 1 :].reshape(-1, n_classes)
        outputs = (1.0 + theta[n_classes]) * base + theta[:n_classes] + columns @ weights
        loss = _log_loss(outputs, codes).sum() + 0.5 * float(strength @ theta**2)
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        error = powers / powers.sum(axis=1, keepdims=True) - wanted  # (n_rows, n_classes)
        gradient = np.concatenate([error.sum(axis=0), [(error * base).sum()], (columns.T @ error).ravel()])
        return loss, gradient + strength * theta

    theta = np.zeros(len(strength))
    if penalties[0] < _NEVER:
        theta = minimize(objective, theta, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    weights = np.zeros((matrix.shape[1], n_classes))
    weights[: columns.shape[1]] = theta[n_classes + 1 :].reshape(-1, n_classes)
    return Correction(1.0 + float(theta[n_classes]), theta[:n_classes], weights, n_rows=n_rows)


def _is_better(losses: Floats, best: Floats) -> bool:
    """Whether the mean gain over held-out rows exceeds its standard error."""
    gains = best - losses
    return len(gains) > 1 and bool(gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)))


def _log_loss(outputs: Floats, codes: NDArray[np.int64]) -> Floats:
    """Log loss of each row from unnormalised log-probabilities."""
    highest = outputs.max(axis=1)
    total = highest + np.log(np.exp(outputs - highest[:, None]).sum(axis=1))
    return np.asarray(total - outputs[np.arange(len(codes)), codes])
