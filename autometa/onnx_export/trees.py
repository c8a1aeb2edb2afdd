"""Trees of every library in one form, and that form as one TreeEnsembleRegressor."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autometa.exceptions import ArtefactError
from autometa.frozen_models import FrozenForest, FrozenHistogram, FrozenLightGBM, FrozenXGBoost
from autometa.onnx_export.graph import Graph

_ATTRIBUTES = {
    "tree": "nodes_treeids", "node": "nodes_nodeids", "mode": "nodes_modes", "feature": "nodes_featureids",
    "value": "nodes_values", "true": "nodes_truenodeids", "false": "nodes_falsenodeids",
    "missing_true": "nodes_missing_value_tracks_true",
}  # fmt: skip


@dataclass
class Trees:
    """Nodes and leaves as ONNX lists them; outputs are summed over all trees."""

    n_outputs: int
    nodes: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _ATTRIBUTES})
    leaves: list[tuple[int, int, int, float]] = field(default_factory=list)
    _spare: int = 0

    def begin(self, n_nodes: int) -> None:
        """Nodes beyond ``n_nodes`` are free for the chains of categorical splits of the next tree."""
        self._spare = n_nodes

    def leaf(self, tree: int, node: int, outputs: dict[int, float]) -> None:
        self._node(tree, node, "LEAF", 0, 0.0, 0, 0, False)
        self.leaves += [(tree, node, output, float(value)) for output, value in outputs.items()]

    def split(self, tree: int, node: int, feature: int, value: float, left: int, right: int, missing_left: bool,
              mode: str = "BRANCH_LEQ") -> None:  # fmt: skip
        """``feature <= value`` goes left, or ``<`` by mode."""
        self._node(tree, node, mode, feature, float(value), left, right, missing_left)

    def split_codes(self, tree: int, node: int, feature: int, codes: list[int], inside: int, outside: int) -> None:
        """Codes of the list go to ``inside``, everything else and NaN to ``outside``: a chain of equalities."""
        if not codes:  # never equal
            self._node(tree, node, "BRANCH_EQ", feature, -9.0, inside, outside, False)
        for i, code in enumerate(codes):
            last = i == len(codes) - 1
            following = outside if last else self._spare
            self._node(tree, node, "BRANCH_EQ", feature, float(code), inside, following, False)
            if not last:
                node, self._spare = self._spare, self._spare + 1

    def _node(self, *values: Any) -> None:
        tree, node, mode, feature, value, true, false, missing = values
        for name, item in zip(_ATTRIBUTES, (tree, node, mode, feature, value, true, false, int(missing)), strict=True):
            self.nodes[name].append(item)

    def add_to(self, graph: Graph, matrix: str, base: list[float], scale: float) -> str:
        """A float32 tensor of shape (n_rows, n_outputs): base + scale * sum over the trees."""
        trees, nodes, outputs, weights = zip(*self.leaves, strict=True)
        attributes = {_ATTRIBUTES[name]: values for name, values in self.nodes.items()}
        return graph.ml(
            "TreeEnsembleRegressor", matrix, n_targets=self.n_outputs, aggregate_function="SUM",
            post_transform="NONE", base_values=[float(value) for value in base], target_treeids=list(trees),
            target_nodeids=list(nodes), target_ids=list(outputs), target_weights=[w * scale for w in weights],
            **attributes,
        )  # fmt: skip


def forest(graph: Graph, model: FrozenForest, matrix: str) -> str:
    """Mean over the trees, shape (n_rows, n_outputs)."""
    trees = Trees(model.value.shape[1])
    for tree, (start, end) in enumerate(zip(model.starts[:-1], model.starts[1:], strict=True)):
        for node in range(end - start):
            at = start + node
            if model.left[at] < 0:
                trees.leaf(tree, node, dict(enumerate(model.value[at])))
            else:
                trees.split(tree, node, int(model.feature[at]), _below(model.threshold[at]), int(model.left[at]),
                            int(model.right[at]), bool(model.missing_left[at]))  # fmt: skip
    return trees.add_to(graph, matrix, [0.0] * trees.n_outputs, 1.0 / (len(model.starts) - 1))


def histogram(graph: Graph, model: FrozenHistogram, matrix: str) -> str:
    """Sum over the trees, shape (n_rows, n_outputs)."""
    trees, nodes = Trees(len(model.baseline)), model.nodes
    for tree, (start, end) in enumerate(zip(model.starts[:-1], model.starts[1:], strict=True)):
        trees.begin(int(end - start))
        for node in range(end - start):
            at = start + node
            left, right, feature = (int(nodes[name][at]) for name in ("left", "right", "feature"))
            if left < 0:
                trees.leaf(tree, node, {tree % trees.n_outputs: nodes["value"][at]})
            elif nodes["bitset"][at] < 0:
                trees.split(tree, node, feature, _below(nodes["threshold"][at]), left, right,
                            bool(nodes["missing_left"][at]))  # fmt: skip
            else:
                known = model.levels[feature]
                goes_left = model.left_codes[nodes["bitset"][at], : len(known)]
                missing_left = bool(nodes["missing_left"][at])  # unknown codes go with the missing ones
                codes = known[~goes_left if missing_left else goes_left].astype(int).tolist()
                inside, outside = (right, left) if missing_left else (left, right)
                trees.split_codes(tree, node, feature, codes, inside, outside)
    return trees.add_to(graph, matrix, model.baseline.tolist(), 1.0)


def lightgbm(graph: Graph, model: FrozenLightGBM, matrix: str) -> str:
    """Raw scores, shape (n_rows, n_outputs)."""
    dump = model.booster.dump_model()
    if dump.get("average_output") or dump["objective"].split()[0] not in ("binary", "multiclass", "regression"):
        raise ArtefactError(f"LightGBM models of the objective {dump['objective']!r} cannot be exported to ONNX.")
    trees = Trees(int(dump["num_tree_per_iteration"]))
    for number, info in enumerate(dump["tree_info"]):
        numbering = _numbering(info["tree_structure"])
        trees.begin(len(numbering))
        for item, node in numbering:
            if "split_index" not in item:
                trees.leaf(number, node, {number % trees.n_outputs: item["leaf_value"]})
                continue
            left, right = node + 1, node + 1 + _size(item["left_child"])
            feature, threshold = int(item["split_feature"]), item["threshold"]
            if item["decision_type"] == "==":
                trees.split_codes(number, node, feature, [int(c) for c in str(threshold).split("||")], left, right)
            else:
                if item["missing_type"] == "Zero":
                    raise ArtefactError("LightGBM models that read 0 as missing cannot be exported to ONNX.")
                zero_left = float(threshold) >= 0.0  # without a missing type NaN counts as 0
                missing_left = bool(item["default_left"]) if item["missing_type"] == "NaN" else zero_left
                trees.split(number, node, feature, _below(float(threshold)), left, right, missing_left)
    return trees.add_to(graph, matrix, [0.0] * trees.n_outputs, 1.0)


def _size(item: dict[str, Any]) -> int:
    return 1 if "split_index" not in item else 1 + _size(item["left_child"]) + _size(item["right_child"])


def _numbering(item: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """All nodes of a nested tree, each with its number: parent, left subtree, right subtree."""
    found: list[tuple[dict[str, Any], int]] = []
    stack = [item]
    while stack:
        node = stack.pop()
        found.append((node, len(found)))
        if "split_index" in node:
            stack += [node["right_child"], node["left_child"]]
    return found


def xgboost(graph: Graph, model: FrozenXGBoost, matrix: str) -> str:
    """Raw scores, shape (n_rows, n_outputs)."""
    learner = json.loads(model.json)["learner"]
    booster, declared = learner["gradient_booster"]["model"], learner["learner_model_param"]
    trees = Trees(max(1, int(declared["num_class"])))
    for number, (tree, output) in enumerate(zip(booster["trees"], booster["tree_info"], strict=True)):
        for node, left in enumerate(tree["left_children"]):
            value = tree["split_conditions"][node]
            if left < 0:
                trees.leaf(number, node, {output: value})
            else:
                trees.split(number, node, tree["split_indices"][node], value, left, tree["right_children"][node],
                            bool(tree["default_left"][node]), "BRANCH_LT")  # fmt: skip
    base = np.atleast_1d(np.array(json.loads(f"[{declared['base_score'].strip('[]')}]"), dtype=np.float64))
    if learner["objective"]["name"] == "binary:logistic":
        base = np.log(base / (1.0 - base))
    return trees.add_to(graph, matrix, np.broadcast_to(base, trees.n_outputs).tolist(), 1.0)


def catboost(graph: Graph, model: Any, matrix: str) -> str:
    """Raw scores, shape (n_rows, n_outputs), from symmetric trees: all nodes of a level ask the same question.

    Raises
    ------
    ArtefactError
        A tree asks for a category, which CatBoost reads through hashes and running means of the target.
    """
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "model.json"
        model.model_.save_model(str(path), format="json")
        about = json.loads(path.read_text())
    absent = [column["nan_value_treatment"] != "AsTrue" for column in about["features_info"].get("float_features", [])]
    scale, base = about["scale_and_bias"]
    trees = Trees(len(base))
    for number, tree in enumerate(about["oblivious_trees"]):
        splits, values = tree["splits"] or [], tree["leaf_values"]
        if any(split["split_type"] != "FloatFeature" for split in splits):
            raise ArtefactError(
                "A CatBoost model that reads categories cannot be exported to ONNX, which has no such encoding. "
                "Fit without CatBoost or without these columns, or serve the model with 'autometa serve'."
            )
        for level, split in enumerate(splits):
            for place in range(2**level):  # place: the answers so far as bits, the first one lowest
                left, right = (2 ** (level + 1) - 1 + place + bit * 2**level for bit in (0, 1))
                feature = int(split["float_feature_index"])
                trees.split(number, 2**level - 1 + place, feature, _below(split["border"]), left, right,
                            absent[feature])  # fmt: skip
        for leaf in range(2 ** len(splits)):
            own = values[leaf * trees.n_outputs : (leaf + 1) * trees.n_outputs]
            trees.leaf(number, 2 ** len(splits) - 1 + leaf, dict(enumerate(own)))
    return trees.add_to(graph, matrix, base, float(scale))


def _below(threshold: float) -> float:
    """The largest float32 that is not above a threshold: cells are float32, so the same rows go left."""
    rounded = np.float32(threshold)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > threshold else rounded)


TREE_PROBABILITIES: dict[str, Callable[[Graph, Any, str], str]] = {"FrozenForest": forest}
"""Models whose answers are probabilities, or values in regression."""

TREE_SCORES: dict[str, Callable[[Graph, Any, str], str]] = {
    "FrozenHistogram": histogram, "FrozenLightGBM": lightgbm, "FrozenXGBoost": xgboost,
    "CategoricalCatBoostClassifier": catboost, "CategoricalCatBoostRegressor": catboost,
}  # fmt: skip
"""Models whose answers are scores, or values in regression."""
