"""Nets of every birth as standard operators on their frozen weights; PyTorch is not asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.exceptions import ArtefactError
from autometa.onnx_export.graph import Graph

_FLOAT = np.float32


def classifier(graph: Graph, model: Any, matrix: str) -> str:
    """Probabilities, averaged over the members of an ensemble. Shape (n_rows, n_classes)."""
    scores = _net(graph, model.net_, matrix, model._sizes, model._kept)
    found = graph.cast(graph.add("Softmax", scores, axis=-1), np.float64)
    return _over_members(graph, model.net_, found)


def regressor(graph: Graph, model: Any, matrix: str) -> str:
    """Values within the range that the training targets allow. Shape (n_rows, 1)."""
    scores = _net(graph, model.net_, matrix, model._sizes, model._kept)
    values = _over_members(graph, model.net_, graph.cast(scores, np.float64))
    moved = graph.add("Mul", values, graph.constant(model._scale))
    moved = graph.add("Add", moved, graph.constant(model._mean))
    return graph.add("Min", graph.add("Max", moved, graph.constant(model._low)), graph.constant(model._high))


def adaptable(graph: Graph, model: Any, matrix: str) -> str:
    """Probabilities or values of a net as its last adaptation left it; the birth stays behind."""
    kept = np.arange(model.net.table_input.n_numeric)
    scores = graph.cast(_net(graph, model.net, matrix, model.category_sizes, kept), np.float64)
    if model.n_classes:
        return graph.add("Softmax", scores, axis=1)
    return graph.add("Add", graph.add("Mul", scores, graph.constant(model.scale)), graph.constant(model.mean))


def _over_members(graph: Graph, net: Any, found: str) -> str:
    """Mean over the second axis, where an ensemble has its members."""
    return graph.add("ReduceMean", found, axes=[1], keepdims=0) if type(net).__name__ == "EnsembleMLP" else found


def _net(graph: Graph, net: Any, matrix: str, sizes: Sequence[int], kept: NDArray[np.integer[Any]]) -> str:
    """Outputs of a net that reads ``kept`` numbers: (n_rows, n_outputs), of an ensemble (n_rows, K, n_outputs)."""
    codes = ""
    if sizes:
        read = graph.cast(graph.columns(matrix, list(range(len(sizes)))), np.int64)
        known = graph.add("Less", read, graph.constant(list(sizes), np.int64))
        codes = graph.add("Where", known, read, graph.constant(0, np.int64))  # never seen in training
    numbers = graph.columns(matrix, np.asarray(kept) + len(sizes)) if len(kept) else ""
    x = _INPUTS[_known(net.table_input, _INPUTS)](graph, net.table_input, codes, numbers)
    found = x
    if type(net).__name__ == "EnsembleMLP":
        found = graph.add("Unsqueeze", x, graph.constant([1], np.int64))  # (n_rows, 1, D): one view for all members
        for block in net.hidden.blocks:
            found = _through(graph, block, found)
        return _through(graph, [net.output], found)
    answer = _through(graph, [*net.hidden, net.output], found)
    return answer if net.skip is None else graph.add("Add", answer, _linear(graph, net.skip, x))


def _through(graph: Graph, layers: Any, value: str) -> str:
    for layer in layers:
        value = _LAYERS[_known(layer, _LAYERS)](graph, layer, value)
    return value


def _known(module: Any, table: dict[str, Any]) -> str:
    name = type(module).__name__
    if name not in table:
        raise ArtefactError(f"A net with the module {name!r} has no form in ONNX here: use 'autometa serve'.")
    return name


def _linear(graph: Graph, layer: Any, value: str) -> str:
    weights = _array(layer.weight).T
    if layer.bias is None:
        return graph.add("MatMul", value, graph.constant(weights, _FLOAT))
    return graph.affine(value, weights, _array(layer.bias), _FLOAT)


def _shared_linear(graph: Graph, layer: Any, value: str) -> str:
    """One weight matrix for all members, each with factors of its own before and after. (n_rows, K, D)."""
    scaled = graph.add("Mul", value, graph.constant(_array(layer.r), _FLOAT))
    product = graph.add("MatMul", scaled, graph.constant(_array(layer.weight).T, _FLOAT))
    product = graph.add("Mul", product, graph.constant(_array(layer.s), _FLOAT))
    return product if layer.bias is None else graph.add("Add", product, graph.constant(_array(layer.bias), _FLOAT))


def _own_linear(graph: Graph, layer: Any, value: str) -> str:
    """A weight matrix for each place of the second axis: members, or columns. (n_rows, K, D)."""
    turned = graph.add("Transpose", value, perm=[1, 0, 2])
    product = graph.add("MatMul", turned, graph.constant(_array(layer.weight), _FLOAT))
    product = graph.add("Transpose", product, perm=[1, 0, 2])
    return product if layer.bias is None else graph.add("Add", product, graph.constant(_array(layer.bias), _FLOAT))


def _relu(graph: Graph, layer: Any, value: str) -> str:
    return graph.add("Relu", value)


def _silu(graph: Graph, layer: Any, value: str) -> str:
    return graph.add("Mul", value, graph.add("Sigmoid", value))


def _selu(graph: Graph, layer: Any, value: str) -> str:
    return graph.add("Selu", value)  # its default constants are those of PyTorch


def _nothing(graph: Graph, layer: Any, value: str) -> str:
    return value


def _table_input(graph: Graph, module: Any, codes: str, numbers: str) -> str:
    """Looked up categories, then numbers, embedded or not. (n_rows, D)."""
    parts = []
    if module.categorical is not None:
        places = graph.add("Add", codes, graph.constant(_array(module.categorical.offsets), np.int64))
        found = graph.add("Gather", graph.constant(_array(module.categorical.table.weight), _FLOAT), places, axis=0)
        parts.append(_flat(graph, found, module.n_categorical * module.categorical.table.embedding_dim))
    if module.n_numeric and module.numerical is None:
        parts.append(numbers)
    elif module.n_numeric:
        embedding = _EMBEDDINGS[_known(module.numerical, _EMBEDDINGS)]
        found = embedding(graph, module.numerical, numbers)
        parts.append(_flat(graph, found, module.n_outputs - 8 * module.n_categorical))
    return graph.concat(parts)


def _flat(graph: Graph, value: str, width: int) -> str:
    return graph.add("Reshape", value, graph.constant([-1, width], np.int64))


def _periodic(graph: Graph, module: Any, numbers: str) -> str:
    """Sines and cosines of learned frequencies, one linear layer for all columns. (n_rows, n_numbers, E)."""
    column = graph.add("Unsqueeze", numbers, graph.constant([2], np.int64))
    angle = graph.add("Mul", column, graph.constant(2 * math.pi * _array(module.periodic.weight), _FLOAT))
    waves = graph.add("Concat", graph.add("Cos", angle), graph.add("Sin", angle), axis=2)
    return graph.add("Relu", _linear(graph, module.linear, waves))


def _piecewise_linear(graph: Graph, module: Any, numbers: str) -> str:
    """How far each bin is filled, a linear layer a column, and a straight line beside it. (n_rows, n_numbers, E)."""
    column = graph.add("Unsqueeze", numbers, graph.constant([2], np.int64))
    filled = graph.add("Mul", column, graph.constant(_array(module.impl.weight), _FLOAT))
    filled = graph.add("Add", filled, graph.constant(_array(module.impl.bias), _FLOAT))
    lower, upper = _bin_limits(module.impl)
    filled = graph.add("Min", graph.add("Max", filled, graph.constant(lower, _FLOAT)), graph.constant(upper, _FLOAT))
    found = _own_linear(graph, module.linear, filled)
    if module.linear0 is None:
        return found
    line = graph.add("Mul", column, graph.constant(_array(module.linear0.weight), _FLOAT))
    return graph.add("Add", found, graph.add("Add", line, graph.constant(_array(module.linear0.bias), _FLOAT)))


def _bin_limits(encoding: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Between what a bin's filling is kept: the first may fall below 0, the last may rise above 1."""
    shape, largest = _array(encoding.weight).shape, np.finfo(np.float32).max
    lower, upper = np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)
    if shape[1] == 1:
        return np.full(shape, -largest), np.full(shape, largest)
    lower[:, 0], upper[:, -1] = -largest, largest
    if encoding.single_bin_mask is not None:
        lower[_array(encoding.single_bin_mask), -1] = -largest
    return lower, upper


def _projected_input(graph: Graph, module: Any, codes: str, numbers: str) -> str:
    """The layout of the learned birth: rows of the levels summed, numbers projected. (n_rows, 20)."""
    shift = graph.constant(_array(module.shift)[None], _FLOAT)
    parts = []
    if numbers:
        parts.append(graph.add("MatMul", numbers, graph.constant(_array(module.projection), _FLOAT)))
    if codes:
        places = graph.add("Add", codes, graph.constant(_array(module.offsets), np.int64))
        found = graph.add("Gather", graph.constant(_array(module.levels), _FLOAT), places, axis=0)
        parts.append(graph.add("ReduceSum", found, graph.constant([1], np.int64), keepdims=0))
    return graph.add("Sum", *parts, shift)


def _standard_input(graph: Graph, module: Any, codes: str, numbers: str) -> str:
    """The input of generated nets: indicators of levels and numbers, standardised and smoothly clipped."""
    from autometa.nets.standard_input import CLIP, n_indicators  # imports PyTorch, which such a net needed

    parts = []
    for i, size in enumerate(module.category_sizes):
        levels = graph.constant(np.arange(1, 1 + n_indicators(size)), np.int64)
        parts.append(graph.cast(graph.add("Equal", graph.columns(codes, [i]), levels), _FLOAT))
    raw = graph.concat([*parts, numbers] if numbers else parts)
    if module.columns is not None:
        raw = graph.columns(raw, _array(module.columns))
    moved = graph.add("Sub", raw, graph.constant(_array(module.mean), _FLOAT))
    return graph.soft_clip(graph.add("Mul", moved, graph.constant(_array(module.factor), _FLOAT)), CLIP, _FLOAT)


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().cpu().numpy())


_Layer = Callable[[Graph, Any, str], str]
_LAYERS: dict[str, _Layer] = {
    "Linear": _linear, "LinearBatchEnsemble": _shared_linear, "LinearEnsemble": _own_linear, "ReLU": _relu,
    "SiLU": _silu, "SELU": _selu, "Dropout": _nothing,
}  # fmt: skip
_EMBEDDINGS: dict[str, _Layer] = {
    "PeriodicEmbeddings": _periodic, "PiecewiseLinearEmbeddings": _piecewise_linear,
}  # fmt: skip
_INPUTS: dict[str, Callable[[Graph, Any, str, str], str]] = {
    "TableInput": _table_input, "ProjectedInput": _projected_input, "StandardInput": _standard_input,
}  # fmt: skip

NET_PROBABILITIES: dict[str, _Layer] = {"NetClassifier": classifier, "AdaptableNet": adaptable}
NET_VALUES: dict[str, _Layer] = {"NetRegressor": regressor}
