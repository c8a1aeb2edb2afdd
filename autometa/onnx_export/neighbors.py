"""k nearest neighbours: distances to the training rows, summed column by column, and the smallest k of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autometa.onnx_export.graph import Graph


def neighbors(graph: Graph, model: Any, matrix: str) -> str:
    """Probabilities (n_rows, n_classes) or values (n_rows, 1): a weighted mean over the neighbours' targets."""
    known = np.asarray(model._fit_X, dtype=np.float64)  # (n_known, n_columns)
    target = np.asarray(model._y)
    if hasattr(model, "classes_"):
        target = np.eye(len(model.classes_))[target.astype(int)]
    distances = _distances(graph, graph.cast(matrix, np.float64), known, int(model.p))  # (n_rows, n_known)
    nearest, places = graph.smallest(distances, int(model.n_neighbors))  # (n_rows, k) each
    found = graph.add(
        "Gather", graph.constant(target.reshape(len(known), -1)), places, axis=0
    )  # (n_rows, k, n_outputs)
    if model.weights == "uniform":
        return graph.add("ReduceMean", found, axes=[1], keepdims=0)
    weights = graph.add("Unsqueeze", _shares(graph, nearest), graph.constant([2], np.int64))  # (n_rows, k, 1)
    return graph.add("ReduceSum", graph.add("Mul", found, weights), graph.constant([1], np.int64), keepdims=0)


def _distances(graph: Graph, x: str, known: Any, p: int) -> str:
    """Manhattan (p = 1) or Euclidean distances, exact, without a table of rows x known rows x columns.

    A running sum over the columns (Scan): the shorter way through a matrix product is not exact at distance 0, where
    the weights of neighbours are decided.
    """
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Unsqueeze", ["mine", "axis"], ["column"]),  # (n_rows, 1)
        helper.make_node("Sub", ["column", "theirs"], ["difference"]),  # (n_rows, n_known)
        helper.make_node("Abs", ["difference"], ["part"])
        if p == 1
        else helper.make_node("Mul", ["difference", "difference"], ["part"]),
        helper.make_node("Add", ["before", "part"], ["after"]),
    ]
    infos: list[tuple[str, list[Any]]] = [
        ("before", ["rows", len(known)]),
        ("mine", ["rows"]),
        ("theirs", [len(known)]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape) for name, shape in infos]
    output = helper.make_tensor_value_info("after", TensorProto.DOUBLE, ["rows", len(known)])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    body = helper.make_graph(nodes, "distance", inputs, [output], [axis])
    zeros = graph.add("MatMul", x, graph.constant(np.zeros(known.shape[::-1])))  # (n_rows, n_known)
    mine = graph.add("Transpose", x, perm=[1, 0])
    found = graph.add("Scan", zeros, mine, graph.constant(known.T), body=body, num_scan_inputs=2)
    return found if p == 1 else graph.add("Sqrt", found)


def _shares(graph: Graph, nearest: str) -> str:
    """Inverse distances as shares of their sum; rows at distance 0 share alone. (n_rows, k)."""
    same = graph.add("Equal", nearest, graph.constant(0.0))
    any_same = graph.add("ReduceMax", graph.cast(same, np.float64), axes=[1], keepdims=1)
    inverse = graph.add("Div", graph.constant(1.0), graph.add("Where", same, graph.constant(1.0), nearest))
    weights = graph.add(
        "Where", graph.add("Greater", any_same, graph.constant(0.5)), graph.cast(same, np.float64), inverse
    )
    total = graph.add("ReduceSum", weights, graph.constant([1], np.int64), keepdims=1)
    return graph.add("Div", weights, total)


NEIGHBOR_MODELS: dict[str, Callable[[Graph, Any, str], str]] = {
    "KNeighborsClassifier": neighbors,
    "KNeighborsRegressor": neighbors,
}
