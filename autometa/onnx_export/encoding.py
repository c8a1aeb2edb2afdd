"""The TableEncoder as ONNX operators, for numbers, booleans and categories."""

from __future__ import annotations

from typing import Any

import numpy as np

from autometa.data import ColumnKind
from autometa.exceptions import ArtefactError
from autometa.onnx_export.graph import Graph
from autometa.preprocessing import TableEncoder
from autometa.preprocessing.columns import FLOAT32_MAX
from autometa.preprocessing.scaling import NET_REACH


def add_inputs(graph: Graph, kinds: dict[Any, ColumnKind]) -> dict[Any, str]:
    """One input for each column that carries something: float64 (NaN is missing) or text ("" is missing).

    Raises
    ------
    ArtefactError
        A column of dates or free text.
    """
    found = {}
    for name, kind in kinds.items():
        if kind in (ColumnKind.NUMERIC, ColumnKind.BOOLEAN):
            found[name] = graph.input(str(name), np.float64)
        elif kind is ColumnKind.CATEGORICAL:
            found[name] = graph.input(str(name), np.str_)
        elif kind is not ColumnKind.EMPTY:
            raise ArtefactError(
                f"A model that reads {kind} columns cannot be exported to ONNX, which has no such encoding. "
                f"Got {name!r}: fit without it, or serve the model with 'autometa serve'."
            )
    return found


def add_encoder(graph: Graph, encoder: TableEncoder, inputs: dict[Any, str]) -> str:
    """The float32 matrix of an encoder, shape (n_rows, n_columns)."""
    numbers = [name for name, kind in encoder.kinds_.items() if kind in (ColumnKind.NUMERIC, ColumnKind.BOOLEAN)]
    categories = [name for name, kind in encoder.kinds_.items() if kind is ColumnKind.CATEGORICAL]
    parts = [_category(graph, encoder, i, inputs[name]) for i, name in enumerate(categories)]
    if numbers:
        raw = graph.concat([inputs[name] for name in numbers])
        parts += _numbers(graph, encoder, raw)
    if not parts:
        raise ArtefactError("A model must read at least one column to be exported to ONNX.")
    return graph.concat(parts)


def _category(graph: Graph, encoder: TableEncoder, place: int, text: str) -> str:
    """Codes as one float column for "tree" and "net", as one column per slot for "linear"."""
    levels = encoder.categories_[place]
    n_levels = len(levels)
    missing, unknown = {"linear": (n_levels, n_levels + 1), "tree": (-2, -1), "net": (-1, -1)}[encoder.matrix]
    code = graph.ml(
        "LabelEncoder", text, keys_strings=[*levels, ""], values_int64s=[*range(n_levels), missing],
        default_int64=unknown,
    )  # fmt: skip
    if encoder.matrix == "tree":
        value, nan = graph.cast(code, np.float32), graph.constant(np.nan, np.float32)
        return graph.add("Where", graph.add("Equal", code, graph.constant(-2, np.int64)), nan, value)
    if encoder.matrix == "net":
        return graph.cast(graph.add("Add", code, graph.constant(1, np.int64)), np.float32)
    slots = np.asarray(encoder.slots_[place])
    first = sum(len(names) for names in encoder.slot_names_[:place])
    width = len(encoder.slot_names_[place])
    rows = np.zeros((n_levels + 2, width), dtype=np.float32)
    for row in range(n_levels + 2):
        if slots[row] >= 0:
            rows[row, slots[row] - first] = 1.0
    found = graph.add("Gather", graph.constant(rows, np.float32), code, axis=0)  # (n_rows, 1, width)
    return graph.add("Reshape", found, graph.constant([-1, width], np.int64))


def _numbers(graph: Graph, encoder: TableEncoder, raw: str) -> list[str]:
    """Numbers as :class:`~autometa.preprocessing.scaling.NumberScaling` gives them, then missing indicators."""
    scaling = encoder.scaling_
    absent = graph.add("IsNaN", raw)
    known = _clipped(graph, graph.add("Where", absent, graph.constant(0.0), raw), -FLOAT32_MAX, FLOAT32_MAX)
    if encoder.matrix == "tree":
        moved = _clipped(graph, graph.add("Sub", known, graph.constant(scaling.center)), scaling.lower, scaling.upper)
        return [graph.cast(graph.add("Where", absent, graph.constant(np.nan), moved), np.float32)]
    filled = graph.add("Where", absent, graph.constant(scaling.fill), known)
    bounded = _clipped(graph, filled, scaling.lower, scaling.upper)
    scaled = graph.add("Mul", graph.add("Sub", bounded, graph.constant(scaling.center)), graph.constant(scaling.factor))
    if encoder.matrix == "net":
        scaled = graph.soft_clip(scaled, NET_REACH)
    parts = [graph.cast(scaled, np.float32)]
    if len(scaling.indicators):
        parts.append(graph.cast(graph.columns(graph.cast(absent, np.int64), scaling.indicators), np.float32))
    return parts


def _clipped(graph: Graph, value: str, lower: Any, upper: Any) -> str:
    return graph.add("Min", graph.add("Max", value, graph.constant(lower)), graph.constant(upper))
