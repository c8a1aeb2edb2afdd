"""export_onnx: what a Predictor does, from the raw columns to the labels, as one checked ONNX file."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.data import ColumnKind
from autometa.exceptions import ArtefactError
from autometa.onnx_export.encoding import add_encoder, add_inputs
from autometa.onnx_export.graph import Graph
from autometa.onnx_export.kernels import KERNEL_PROBABILITIES, KERNEL_VALUES
from autometa.onnx_export.linear import BAYES_PROBABILITIES, LINEAR_SCORES
from autometa.onnx_export.neighbors import NEIGHBOR_MODELS
from autometa.onnx_export.nets import NET_PROBABILITIES, NET_VALUES
from autometa.onnx_export.trees import TREE_PROBABILITIES, TREE_SCORES
from autometa.predictor import Member, Predictor

_CHECKED_ROWS = 256
_LEAST_PROBABILITY = 1e-9
_TOLERANCE = 1e-4
_SCORES = {**LINEAR_SCORES, **TREE_SCORES, **KERNEL_VALUES, **NET_VALUES}
_PROBABILITIES = {
    **TREE_PROBABILITIES, **BAYES_PROBABILITIES, **KERNEL_PROBABILITIES, **NEIGHBOR_MODELS, **NET_PROBABILITIES,
}  # fmt: skip
_MODELS = {**_SCORES, **_PROBABILITIES}


def export_onnx(predictor: Predictor, path: str | PathLike[str]) -> Path:
    """Write a model as ONNX: one input a column, outputs ``label`` and ``probabilities``, or ``value``.

    Numbers and booleans are float64 inputs of shape (rows, 1), NaN where missing; categories are text, "" where
    missing, whole numbers without ".0". The encoding is part of the graph. Every family that comes with the library
    can be exported, alone or as an ensemble, adapted or not; columns of dates or free text cannot, nor CatBoost where
    it reads categories. Nearest neighbours and support vector machines take training rows along, as their artefacts do.
    Before the file is written, its predictions of 256 made-up rows are compared with those of the model, if onnxruntime
    is installed.

    Parameters
    ----------
    predictor : Predictor
    path : path
        Is overwritten.

    Returns
    -------
    Path

    Raises
    ------
    ArtefactError
        A member or a column has no form in ONNX; the sentence says which.
    ImportError
        The extra is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ImportError("Exporting needs onnx. Install it with: pip install 'autometa-ml[onnx]'") from error
    model = to_onnx(predictor)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    _check(predictor, content)
    path = Path(path)
    path.write_bytes(content)
    return path


def to_onnx(predictor: Predictor) -> Any:
    """The ``onnx.ModelProto`` of :func:`export_onnx`, not checked."""
    graph = Graph()
    used = [member for member in predictor.members if member.weight > 0]
    for member in used:
        _refuse_unknown(member)
    inputs = add_inputs(graph, {column.name: column.kind for column in predictor.columns})
    wanted = {member.matrix for member in used}
    if predictor.correction is not None:
        wanted.add(predictor.correction.matrix)
    matrices = {kind: add_encoder(graph, predictor.encoders[kind], inputs) for kind in sorted(wanted)}
    total = sum(member.weight for member in used)
    parts = [
        graph.add("Mul", _member(graph, member, matrices[member.matrix], predictor.n_classes),
                  graph.constant(member.weight / total)) for member in used
    ]  # fmt: skip
    raw = parts[0] if len(parts) == 1 else graph.add("Sum", *parts)
    about = {"task": str(predictor.task), "columns": json.dumps([str(c.name) for c in predictor.columns])}
    if predictor.classes is None:
        raw = _corrected(graph, predictor, raw, matrices)
        graph.add("Reshape", raw, graph.constant([-1], np.int64), output="value")
        return graph.model([("value", np.float64, ["rows"])], about)
    raw = _corrected(graph, predictor, _calibrated(graph, predictor.temperature, raw), matrices)
    graph.add("Identity", raw, output="probabilities")
    labels = predictor.classes
    best = graph.add("ArgMax", raw, axis=1, keepdims=0)
    dtype = np.int64 if labels.dtype.kind in "iub" else np.str_
    values = labels.astype(np.int64) if dtype is np.int64 else np.array([str(label) for label in labels], dtype=object)
    graph.add("Gather", graph.constant(values, np.int64 if dtype is np.int64 else object), best, output="label")
    shape = ["rows", predictor.n_classes]
    return graph.model([("label", dtype, ["rows"]), ("probabilities", np.float64, shape)], about)


def _refuse_unknown(member: Member) -> None:
    for model in member.models:
        if type(model).__name__ not in _MODELS:
            raise ArtefactError(
                f"A model of the family {member.family!r} has no form in ONNX here. Fit with the families that come "
                "with the library, or use 'autometa serve'."
            )


def _member(graph: Graph, member: Member, matrix: str, n_classes: int) -> str:
    """Mean over the models of a member, float64 of shape (n_rows, n_outputs)."""
    parts = [_model(graph, model, matrix, codes, n_classes)
             for model, codes in zip(member.models, member.class_codes, strict=True)]  # fmt: skip
    if len(parts) == 1:
        return parts[0]
    return graph.add("Div", graph.add("Sum", *parts), graph.constant(float(len(parts))))


def _model(graph: Graph, model: Any, matrix: str, codes: tuple[int, ...], n_classes: int) -> str:
    name = type(model).__name__
    if name in _PROBABILITIES and n_classes:
        found = graph.cast(_PROBABILITIES[name](graph, model, matrix), np.float64)
    else:
        raw = graph.cast(_MODELS[name](graph, model, matrix), np.float64)
        if n_classes == 0:
            return raw
        found = graph.probabilities(raw, len(codes))
    if codes == tuple(range(n_classes)):
        return found
    spread = np.zeros((len(codes), n_classes))
    spread[np.arange(len(codes)), list(codes)] = 1.0  # classes that a fold model never saw get nothing
    return graph.add("MatMul", found, graph.constant(spread))


def _calibrated(graph: Graph, temperature: float, raw: str) -> str:
    if temperature != 1.0:
        raw = graph.add("Pow", raw, graph.constant(1.0 / temperature))
    total = graph.add("ReduceSum", raw, graph.constant([1], np.int64), keepdims=1)
    return graph.add("Div", raw, graph.add("Max", total, graph.constant(1e-300)))


def _corrected(graph: Graph, predictor: Predictor, raw: str, matrices: dict[Any, str]) -> str:
    correction = predictor.correction
    if correction is None:
        return raw
    if predictor.classes is not None:
        raw = graph.add("Log", graph.add("Max", raw, graph.constant(_LEAST_PROBABILITY)))
    cells = graph.cast(matrices[correction.matrix], np.float64)
    moved = graph.add("Mul", raw, graph.constant(correction.slope))
    moved = graph.add("Add", moved, graph.add("MatMul", cells, graph.constant(correction.weights)))
    moved = graph.add("Add", moved, graph.constant(correction.intercept))
    return moved if predictor.classes is None else graph.add("Softmax", moved, axis=1)


def onnx_inputs(predictor: Predictor, frame: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """A table as the inputs of an exported model."""
    found: dict[str, NDArray[Any]] = {}
    for column in predictor.columns:
        values = frame[column.name]
        if column.kind in (ColumnKind.NUMERIC, ColumnKind.BOOLEAN):
            found[str(column.name)] = values.to_numpy(dtype=np.float64, na_value=np.nan).reshape(-1, 1)
        elif column.kind is ColumnKind.CATEGORICAL:
            texts = ["" if missing else str(value) for value, missing in zip(values, values.isna(), strict=True)]
            found[str(column.name)] = np.array(texts, dtype=object).reshape(-1, 1)
    return found


def _check(predictor: Predictor, content: bytes) -> None:
    """Compare with the model on made-up rows; ArtefactError where they differ."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return
    frame = _made_up(predictor)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, onnx_inputs(predictor, frame))[-1]
    expected = predictor.predict_raw(frame)
    models = [model for member in predictor.members for model in member.models]
    if not np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * max(1e-3, float(np.abs(expected).max()))):
        if any(type(model).__name__ in NEIGHBOR_MODELS for model in models):
            raise ArtefactError(
                "Nearest neighbours cannot be exported to ONNX where rows lie at equal distances (copies of rows, few "
                "categories): which of them count is up to chance. Fit without knn, or use 'autometa serve'."
            )
        far = float(np.abs(found - expected).max())
        raise ArtefactError(f"The exported model must predict as the model does. It is off by {far:.3g}: report this.")


def _made_up(predictor: Predictor) -> pd.DataFrame:
    """Rows about where the encoder saw numbers, known and unknown categories, some of them missing."""
    rng = np.random.default_rng(0)
    data: dict[Any, Any] = {}
    centers = {}
    for encoder in predictor.encoders.values():
        names = [name for name, kind in encoder.kinds_.items() if kind in (ColumnKind.NUMERIC, ColumnKind.BOOLEAN)]
        scaling = encoder.scaling_
        for name, center, factor in zip(names, scaling.center, scaling.factor, strict=False):
            centers[name] = (float(center), 1.0 / factor if factor > 0 else 1.0)
    for column in predictor.columns:
        absent = rng.random(_CHECKED_ROWS) < 0.1
        if column.kind is ColumnKind.CATEGORICAL:
            data[column.name] = rng.choice([*column.categories, "never seen"], _CHECKED_ROWS).astype(object)
            data[column.name][absent] = None
        else:
            center, spread = centers.get(column.name, (0.0, 1.0))
            values = center + spread * rng.standard_t(3, _CHECKED_ROWS)
            data[column.name] = np.where(absent, np.nan, values)
    return pd.DataFrame(data)
