"""Support vector machines: kernels of the rows with the support vectors or the Nystroem landmarks, then products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.exceptions import ArtefactError
from autometa.onnx_export.graph import Graph
from autometa.onnx_export.linear import linear


def classifier(graph: Graph, model: Any, matrix: str) -> str:
    """Probabilities of a KernelClassifier, shape (n_rows, n_classes)."""
    x, inner = graph.cast(matrix, np.float64), model.model_
    name, n_classes = type(inner).__name__, len(model.classes_)
    if name == "Pipeline":
        return graph.probabilities(
            linear(graph, inner.steps[-1][1], _landmarks(graph, inner.steps[0][1], x)), n_classes
        )
    if name == "CalibratedClassifierCV":
        (calibrated,) = inner.calibrated_classifiers_
        return _calibrated(graph, _margins(graph, calibrated.estimator, x), calibrated.calibrators)
    return graph.probabilities(linear(graph, inner.readout_, _margins(graph, inner.machine_, x)), n_classes)


def regressor(graph: Graph, model: Any, matrix: str) -> str:
    """Values of a KernelRegressor, shape (n_rows, 1)."""
    x, inner = graph.cast(matrix, np.float64), model.model_
    if type(inner).__name__ == "Pipeline":
        found = linear(graph, inner.steps[-1][1], _landmarks(graph, inner.steps[0][1], x))
    else:
        found = graph.affine(_kernel_of(graph, inner, x), inner.dual_coef_.T, inner.intercept_)
    scaled = graph.add("Mul", found, graph.constant(model.scaler_.scale_[0]))
    return graph.add("Add", scaled, graph.constant(model.scaler_.mean_[0]))


def _landmarks(graph: Graph, nystroem: Any, x: str) -> str:
    """Nystroem features, shape (n_rows, n_components)."""
    coef0 = 1.0 if nystroem.coef0 is None else nystroem.coef0  # scikit-learn's own default for kernels by name
    found = _kernel(graph, x, nystroem.components_, nystroem.kernel, (nystroem.gamma, coef0, nystroem.degree or 3))
    return graph.add("MatMul", found, graph.constant(nystroem.normalization_.T))


def _margins(graph: Graph, machine: Any, x: str) -> str:
    """Decision function: (n_rows, 1) for two classes, else (n_rows, n_classes)."""
    if type(machine).__name__ == "OneVsRestClassifier":
        return graph.concat([_margins(graph, part, x) for part in machine.estimators_])
    if type(machine).__name__ != "SVC":
        raise ArtefactError(f"A kernel machine of the type {type(machine).__name__} has no form in ONNX here.")
    kernel, n_classes = _kernel_of(graph, machine, x), len(machine.classes_)
    if n_classes == 2:
        return graph.affine(kernel, machine.dual_coef_.T, machine.intercept_)
    pairs = [(i, j) for i in range(n_classes) for j in range(i + 1, n_classes)]
    decisions = graph.affine(kernel, _pair_weights(machine, pairs), machine.intercept_)  # (n_rows, n_pairs)
    return _one_against_rest(graph, decisions, pairs, n_classes)


def _pair_weights(machine: Any, pairs: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Weight of each support vector in each pair of classes, as libsvm lays them out. (n_vectors, n_pairs)."""
    ends = np.cumsum(machine.n_support_)
    place = [slice(end - count, end) for end, count in zip(ends, machine.n_support_, strict=True)]
    weights = np.zeros((int(ends[-1]), len(pairs)))
    for pair, (i, j) in enumerate(pairs):
        weights[place[i], pair] = machine.dual_coef_[j - 1, place[i]]
        weights[place[j], pair] = machine.dual_coef_[i, place[j]]
    return weights


def _one_against_rest(graph: Graph, decisions: str, pairs: list[tuple[int, int]], n_classes: int) -> str:
    """Votes of the pairs, ties broken by the summed decisions: scikit-learn's "ovr" shape. (n_rows, n_classes)."""
    signs = np.zeros((len(pairs), n_classes))
    for pair, (i, j) in enumerate(pairs):
        signs[pair, i], signs[pair, j] = 1.0, -1.0
    first = graph.cast(graph.add("GreaterOrEqual", decisions, graph.constant(0.0)), np.float64)
    lost = np.maximum(-signs, 0.0)  # a pair lost by its first class is won by its second
    votes = graph.affine(first, np.maximum(signs, 0.0) - lost, lost.sum(axis=0))
    confidence = graph.add("MatMul", decisions, graph.constant(signs))
    size = graph.add("Mul", graph.add("Add", graph.add("Abs", confidence), graph.constant(1.0)), graph.constant(3.0))
    return graph.add("Add", votes, graph.add("Div", confidence, size))


def _calibrated(graph: Graph, margins: str, calibrators: list[Any]) -> str:
    """Sigmoid calibration of each column, then shares. Shape (n_rows, n_classes)."""
    slopes = np.array([-calibrator.a_ for calibrator in calibrators])
    shifts = np.array([-calibrator.b_ for calibrator in calibrators])
    moved = graph.add("Add", graph.add("Mul", margins, graph.constant(slopes)), graph.constant(shifts))
    if len(calibrators) == 1:
        return graph.probabilities(moved, 2)
    found = graph.add("Sigmoid", moved)
    total = graph.add("ReduceSum", found, graph.constant([1], np.int64), keepdims=1)
    return graph.add("Div", found, graph.add("Max", total, graph.constant(1e-300)))


def _kernel_of(graph: Graph, machine: Any, x: str) -> str:
    options = (machine.gamma, machine.coef0, machine.degree)
    return _kernel(graph, x, machine.support_vectors_, machine.kernel, options)


def _kernel(graph: Graph, x: str, points: Any, kind: str, options: tuple[float, float, float]) -> str:
    """Kernel of each row with each point, shape (n_rows, n_points); options are gamma, coef0 and degree."""
    gamma, coef0, degree = options
    points = np.asarray(points, dtype=np.float64)
    product = graph.add("MatMul", x, graph.constant(points.T * gamma))
    if kind == "poly":
        return graph.add("Pow", graph.add("Add", product, graph.constant(coef0)), graph.constant(float(degree)))
    if kind == "sigmoid":
        return graph.add("Tanh", graph.add("Add", product, graph.constant(coef0)))
    if kind != "rbf":
        raise ArtefactError(f"A kernel machine with the kernel {kind!r} has no form in ONNX here.")
    own = graph.add("ReduceSum", graph.add("Mul", x, x), graph.constant([1], np.int64), keepdims=1)  # (n_rows, 1)
    lengths = graph.add("Add", graph.add("Mul", own, graph.constant(gamma)), graph.constant(gamma * (points**2).sum(1)))
    minus = graph.add("Sub", graph.add("Mul", product, graph.constant(2.0)), lengths)
    return graph.add("Exp", graph.add("Min", minus, graph.constant(0.0)))


KERNEL_PROBABILITIES: dict[str, Callable[[Graph, Any, str], str]] = {"KernelClassifier": classifier}
KERNEL_VALUES: dict[str, Callable[[Graph, Any, str], str]] = {"KernelRegressor": regressor}
