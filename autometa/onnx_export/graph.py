"""A thin builder of ONNX graphs: names are made, constants become initialisers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET, ML_OPSET = 17, 3


class Graph:
    """Nodes, constants and inputs of a graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self._n_names = 0

    def name(self) -> str:
        self._n_names += 1
        return f"v{self._n_names}"

    def input(self, name: str, dtype: Any) -> str:
        """A column of shape (n_rows, 1) of the table."""
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["rows", 1]))
        return name

    def constant(self, values: Any, dtype: Any = np.float64) -> str:
        from onnx import numpy_helper

        name = self.name()
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def add(self, kind: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        from onnx import helper

        output = output or self.name()
        self.nodes.append(helper.make_node(kind, list(inputs), [output], domain=domain, **attributes))
        return output

    def ml(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node of the ai.onnx.ml domain."""
        return self.add(kind, *inputs, domain="ai.onnx.ml", **attributes)

    def cast(self, value: str, dtype: Any) -> str:
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def concat(self, values: list[str]) -> str:
        """Side by side."""
        return values[0] if len(values) == 1 else self.add("Concat", *values, axis=1)

    def columns(self, value: str, places: NDArray[np.integer[Any]] | list[int]) -> str:
        return self.add("Gather", value, self.constant(places, np.int64), axis=1)

    def affine(self, value: str, weights: NDArray[np.floating[Any]], shift: Any, dtype: Any = np.float64) -> str:
        """``value @ weights + shift``."""
        product = self.add("MatMul", value, self.constant(weights, dtype))
        return self.add("Add", product, self.constant(shift, dtype))

    def probabilities(self, scores: str, n_classes: int) -> str:
        """Logistic of one float64 score, or softmax of several. Shape (n_rows, n_classes)."""
        if n_classes > 2:
            return self.add("Softmax", scores, axis=1)
        second = self.add("Sigmoid", scores)
        return self.concat([self.add("Sub", self.constant(1.0), second), second])

    def soft_clip(self, value: str, reach: float, dtype: Any = np.float64) -> str:
        """``value / sqrt(1 + (value / reach)^2)``: within (-reach, reach)."""
        share = self.add("Div", value, self.constant(reach, dtype))
        under = self.add("Add", self.add("Mul", share, share), self.constant(1.0, dtype))
        return self.add("Div", value, self.add("Sqrt", under))

    def smallest(self, values: str, count: int) -> tuple[str, str]:
        """The smallest values of each row, ascending, and their places; both of shape (n_rows, count)."""
        from onnx import helper

        found, places = self.name(), self.name()
        inputs = [values, self.constant([count], np.int64)]
        self.nodes.append(helper.make_node("TopK", inputs, [found, places], axis=1, largest=0, sorted=1))
        return found, places

    def model(self, outputs: list[tuple[str, Any, list[Any]]], about: dict[str, str]) -> Any:
        """The finished model; outputs are (name, dtype, shape)."""
        from onnx import helper

        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, dtype, shape in outputs
        ]
        graph = helper.make_graph(self.nodes, "autometa", self.inputs, infos, self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, producer_name="autometa", opset_imports=opsets)
        model.ir_version = 8  # what runtimes of the last years read
        helper.set_model_props(model, about)
        return model
