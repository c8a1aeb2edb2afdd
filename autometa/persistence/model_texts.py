"""Whether a model's text can be handed to LightGBM or XGBoost, whose compiled code follows it without looking."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.exceptions import ArtefactError

_MAX_CLASSES = 10_000
_WORD_BITS = 32
_OBJECTIVES = frozenset({"reg:squarederror", "binary:logistic", "multi:softprob"})
_CATEGORY_FIELDS = ("categories", "categories_nodes", "categories_segments", "categories_sizes")
_NODE_INTEGERS = ("left_children", "right_children", "split_indices", "parents", "default_left", "split_type")
_NODE_NUMBERS = ("base_weights", "loss_changes", "split_conditions", "sum_hessian")
_NO_PARENT = 2**31 - 1
_TAIL = re.compile(
    r"end of trees\n\nfeature_importances:\n(?:[^\n=]+=\d+\n)*"
    r"\nparameters:\n(?:\[[^\n]*\]\n)*\nend of parameters\n\npandas_categorical:(?:null|\[\])\n"
)
"""What stands behind the trees. LightGBM reads beyond the text where the parameters do not end."""


def check_lightgbm(text: str) -> None:
    """Raise ArtefactError unless every tree lies where the header says and every walk ends in one of its leaves.

    Parameters
    ----------
    text : str
        From ``Booster.model_to_string()``.

    Notes
    -----
    Children that are inner nodes come behind their parent, because LightGBM appends a node when it splits a leaf; a
    child below 0 is the leaf ``-child - 1``. Categories that go left are bits of 32-bit words.
    """
    try:
        header, blocks = _split(text)
        n_columns = int(header["max_feature_idx"]) + 1
        n_classes, per_iteration = int(header["num_class"]), int(header["num_tree_per_iteration"])
        sound = 0 < n_columns < 2**24 and 0 < n_classes <= _MAX_CLASSES and per_iteration in (1, n_classes)
        sound = sound and len(blocks) % per_iteration == 0 and len(header["feature_infos"].split(" ")) == n_columns
        sound = sound and len(header["feature_names"].split(" ")) == n_columns
        for i, block in enumerate(blocks):
            sound = sound and block.startswith(f"Tree={i}\n") and _is_tree(_fields(block), n_columns)
    except (KeyError, ValueError, IndexError, OverflowError) as error:
        raise ArtefactError(f"The text of a LightGBM model cannot be read: {error!s:.200}") from error
    if not sound:
        raise ArtefactError("The text of a LightGBM model does not describe trees: the file is damaged.")


def _split(text: str) -> tuple[dict[str, str], list[str]]:
    """Header fields and the text of each tree, found by the sizes in the header as LightGBM does."""
    if not (text.isascii() and text.startswith("tree\n") and "\x00" not in text):
        raise ValueError("it must be ASCII and begin with 'tree'")
    start = text.index("Tree=0\n")
    header = _fields(text[:start])
    sizes = [int(size) for size in header["tree_sizes"].split(" ")]
    if min(sizes) <= 0 or not _TAIL.fullmatch(text, start + sum(sizes)):
        raise ValueError("tree_sizes must lead to the end of the trees, and parameters must end")
    if re.search(r"^(linear_tree|is_linear)=[^0]", text, re.MULTILINE):
        raise ValueError("linear trees are not read")
    ends = start + np.cumsum(sizes)
    return header, [text[end - size : end] for end, size in zip(ends.tolist(), sizes, strict=True)]


def _fields(block: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in block.split("\n"):
        name, mark, value = line.partition("=")
        if mark and name in fields:
            raise ValueError(f"{name!r:.40} is given twice")
        fields[name] = value
    return fields


def _is_tree(fields: dict[str, str], n_columns: int) -> bool:
    n_leaves, n_categorical = int(fields["num_leaves"]), int(fields["num_cat"])
    if n_leaves < 1 or n_categorical < 0 or len(_numbers(fields["leaf_value"])) != n_leaves:
        return False
    if n_leaves == 1:
        return n_categorical == 0
    feature, left, right = (_integers(fields[name]) for name in ("split_feature", "left_child", "right_child"))
    decision, threshold = _integers(fields["decision_type"]), _numbers(fields["threshold"])
    n_inner = n_leaves - 1
    if any(len(values) != n_inner for values in (feature, left, right, decision, threshold)):
        return False
    if any(
        len(_numbers(fields[name])) not in (0, n) for name, n in _optional_lengths(n_leaves).items() if name in fields
    ):
        return False
    place = np.arange(n_inner)
    for child in (left, right):
        inner = (child > place) & (child < n_inner)
        leaf = (child < 0) & (child >= -n_leaves)
        if not (inner | leaf).all():
            return False
    sound = (feature >= 0).all() and (feature < n_columns).all() and (decision >= 0).all() and (decision < 16).all()
    return bool(sound) and _has_categories(fields, threshold[decision % 2 == 1], n_categorical)


def _optional_lengths(n_leaves: int) -> dict[str, int]:
    """Arrays that LightGBM reads into buffers of these lengths where they are given."""
    inner = dict.fromkeys(("split_gain", "internal_value", "internal_weight", "internal_count"), n_leaves - 1)
    return {**inner, "leaf_weight": n_leaves, "leaf_count": n_leaves}


def _has_categories(fields: dict[str, str], thresholds: NDArray[np.float64], n_categorical: int) -> bool:
    """Each categorical split points at one of the bit sets, and their boundaries run through all words."""
    if n_categorical == 0:
        return len(thresholds) == 0
    bounds, words = _integers(fields["cat_boundaries"]), _integers(fields["cat_threshold"])
    sound = len(bounds) == n_categorical + 1 and bounds[0] == 0 and bounds[-1] == len(words)
    sound = sound and (np.diff(bounds) > 0).all() and (words >= 0).all() and (words < 2**_WORD_BITS).all()
    pointed = ((thresholds >= 0) & (thresholds < n_categorical) & (thresholds == np.floor(thresholds))).all()
    return bool(sound and pointed)


def _integers(text: str) -> NDArray[np.int64]:
    return np.array([int(part) for part in text.split()], dtype=np.int64)


def _numbers(text: str) -> NDArray[np.float64]:
    return np.array([float(part) for part in text.split()], dtype=np.float64)


def check_xgboost(text: str) -> None:
    """Raise ArtefactError unless every tree of an XGBoost JSON model is a tree over the columns it declares.

    Parameters
    ----------
    text : str
        From ``Booster.save_raw("json")``. Only what this library's families write is read: plain trees with numerical
        splits.
    """
    try:
        learner = json.loads(text)["learner"]
        booster, declared = learner["gradient_booster"], learner["learner_model_param"]
        n_columns, n_classes = int(declared["num_feature"]), max(1, int(declared["num_class"]))
        trees, groups = booster["model"]["trees"], booster["model"]["tree_info"]
        sound = booster["name"] == "gbtree" and int(declared["num_target"]) == 1 and n_columns > 0
        sound = sound and n_classes <= _MAX_CLASSES and learner["objective"]["name"] in _OBJECTIVES
        sound = sound and int(learner["objective"].get("softmax_multiclass_param", {}).get("num_class", 0)) in (
            0,
            n_classes,
        )
        sound = sound and _is_forest(booster["model"], groups, n_classes)
        sound = sound and len(json.loads(f"[{declared['base_score'].strip('[]')}]")) in (1, n_classes)
        sound = sound and all(_is_xgboost_tree(tree, i, n_columns) for i, tree in enumerate(trees))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError) as error:
        raise ArtefactError(f"The text of an XGBoost model cannot be read: {error!s:.200}") from error
    if not sound:
        raise ArtefactError("The text of an XGBoost model does not describe trees: the file is damaged.")


def _is_forest(model: dict[str, Any], groups: list[int], n_classes: int) -> bool:
    """Trees are listed round by round, each with the class it adds to."""
    n_trees, rounds = len(model["trees"]), model["iteration_indptr"]
    sizes = model["gbtree_model_param"]
    sound = int(sizes["num_trees"]) == n_trees == len(groups) and int(sizes["num_parallel_tree"]) == 1
    sound = sound and all(type(group) is int and 0 <= group < n_classes for group in groups)
    sound = sound and all(type(place) is int for place in rounds) and rounds == list(range(0, n_trees + 1, n_classes))
    return sound and not any(model.get("cats", {}).values())


def _is_xgboost_tree(tree: dict[str, Any], number: int, n_columns: int) -> bool:
    declared = {name: int(value) for name, value in tree["tree_param"].items()}
    n_nodes = declared["num_nodes"]
    expected = {"num_deleted": 0, "num_feature": n_columns, "num_nodes": n_nodes, "size_leaf_vector": 1}
    if declared != expected or n_nodes < 1 or tree["id"] != number or any(tree[name] for name in _CATEGORY_FIELDS):
        return False
    if any(len(tree[name]) != n_nodes for name in (*_NODE_INTEGERS, *_NODE_NUMBERS)):
        return False
    fields = {name: _whole(tree[name]) for name in _NODE_INTEGERS}
    if any(not isinstance(value, int | float) for name in _NODE_NUMBERS for value in tree[name]):
        return False
    left, right, feature = fields["left_children"], fields["right_children"], fields["split_indices"]
    place, inner = np.arange(n_nodes), left != -1
    parents = np.full(n_nodes, _NO_PARENT)
    sound = (inner == (right != -1)).all() and (feature >= 0).all() and (feature < n_columns).all()
    sound = sound and np.isin(fields["default_left"], (0, 1)).all() and not fields["split_type"].any()
    for child in (left[inner], right[inner]):
        sound = sound and (child > place[inner]).all() and (child < n_nodes).all()
        if sound:
            parents[child] = place[inner]
    return bool(sound and (parents == fields["parents"]).all())


def _whole(values: list[Any]) -> NDArray[np.int64]:
    if any(type(value) is not int for value in values):
        raise ValueError("whole numbers are needed")
    return np.array(values, dtype=np.int64)
