"""Plain data (scalars, lists, dicts, NumPy arrays) as one JSON tree and one safetensors blob, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.exceptions import ArtefactError

TAG = "$"
"""Key that marks a JSON object as something other than a dict with text keys."""

_ARRAY_KINDS = "biuf"
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_MAX_DEPTH = 60


def pack(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """The JSON form of a value; number arrays are put into ``arrays`` under a running name.

    Parameters
    ----------
    value : None, bool, int, float, str, list, tuple, dict, pandas.Timestamp, NumPy scalar or array
        Dicts may have any of these scalars as keys; arrays of text or objects are written item by item.
    arrays : dict
        Is added to.

    Raises
    ------
    ArtefactError
        A value of another type.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.ndarray):
        return _pack_array(value, arrays)
    if isinstance(value, np.generic):
        return {TAG: "scalar", "dtype": _dtype_text(value.dtype), "value": _pack_item(value, arrays)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: "float", "value": str(float(value))}
    if isinstance(value, pd.Timestamp):
        return {TAG: "timestamp", "value": value.isoformat()}
    if isinstance(value, list):
        return [pack(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {TAG: "tuple", "items": [pack(item, arrays) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and TAG not in value:
            return {str(key): pack(item, arrays) for key, item in value.items()}
        return {TAG: "dict", "items": [[pack(k, arrays), pack(v, arrays)] for k, v in value.items()]}
    raise ArtefactError(
        "Only numbers, text, lists, dicts and arrays of these can be saved. "
        f"Got a {type(value).__name__}: {value!r:.80}."
    )


def _dtype_text(dtype: np.dtype[Any]) -> str:
    if dtype.kind not in _ARRAY_KINDS + "UOMm":
        raise ArtefactError(f"Arrays to be saved must hold numbers, text, dates or objects. Got dtype {dtype}.")
    return dtype.str


def _pack_item(value: np.generic, arrays: dict[str, NDArray[Any]]) -> Any:
    return int(value.astype(np.int64)) if value.dtype.kind in "mM" else pack(value.item(), arrays)


def _pack_array(array: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> Any:
    dtype = _dtype_text(array.dtype)
    node: dict[str, Any] = {TAG: "array", "dtype": dtype, "shape": list(array.shape)}
    if array.dtype.kind in "UO":
        return {**node, "items": [pack(item, arrays) for item in array.ravel().tolist()]}
    # The memory order is kept, because BLAS may add up in another order in another layout.
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    numbers = array.view(np.int64) if array.dtype.kind in "mM" else array.astype(array.dtype.newbyteorder("="))
    name = f"a{len(arrays)}"
    arrays[name] = np.asarray(numbers.T if fortran else numbers, order="C")
    return {**node, "name": name, "order": "F" if fortran else "C"}


def unpack(node: Any, arrays: Mapping[str, NDArray[Any]], depth: int = 0) -> Any:
    """The value that :func:`pack` wrote.

    Raises
    ------
    ArtefactError
        An unknown mark, or nesting beyond 60 levels.
    """
    if depth > _MAX_DEPTH:
        raise ArtefactError(f"Saved data must be nested at most {_MAX_DEPTH} levels deep. The file is damaged.")
    if isinstance(node, list):
        return [unpack(item, arrays, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    if TAG not in node:
        return {key: unpack(item, arrays, depth + 1) for key, item in node.items()}
    mark = node[TAG]
    if mark == "array":
        return _unpack_array(node, arrays, depth)
    if mark == "tuple":
        return tuple(unpack(item, arrays, depth + 1) for item in node["items"])
    if mark == "dict":
        return {unpack(k, arrays, depth + 1): unpack(v, arrays, depth + 1) for k, v in node["items"]}
    if mark == "float":
        return _FLOATS[node["value"]]
    if mark == "timestamp":
        return pd.Timestamp(node["value"])
    if mark == "scalar":
        return np.array([unpack(node["value"], arrays, depth + 1)]).astype(_checked_dtype(node["dtype"]))[0]
    raise ArtefactError(f"Saved data has an unknown mark {mark!r:.40}. Load it with a newer release of autometa.")


def _checked_dtype(text: Any) -> np.dtype[Any]:
    dtype = np.dtype(str(text))
    _dtype_text(dtype)
    return dtype


def _unpack_array(node: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], depth: int) -> NDArray[Any]:
    dtype, shape = _checked_dtype(node["dtype"]), tuple(int(n) for n in node["shape"])
    if dtype.kind in "UO":
        items = [unpack(item, arrays, depth + 1) for item in node["items"]]
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return (array if dtype.kind == "O" else array.astype(f"<U{max(1, max(map(len, items), default=1))}")).reshape(
            shape
        )
    numbers = arrays[node["name"]]
    array = numbers.view(dtype) if dtype.kind in "mM" else numbers.astype(dtype)
    array = array.T.copy(order="F") if node.get("order") == "F" else array.copy()
    if array.shape != shape:
        raise ArtefactError(f"A saved array must have shape {shape}. Got {array.shape}: the file is damaged.")
    return array


def to_files(value: Any) -> dict[str, bytes]:
    """``json`` and, where there are number arrays, ``safetensors``: suffix -> content."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {}
    tree = pack(value, arrays)
    files = {"json": json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()}
    return files | ({"safetensors": save(arrays)} if arrays else {})


def from_files(files: Mapping[str, bytes]) -> Any:
    """The value that :func:`to_files` wrote; any damage is an exception of the parsers or ArtefactError."""
    from safetensors.numpy import load

    arrays = load(files["safetensors"]) if "safetensors" in files else {}
    return unpack(json.loads(files["json"]), arrays)
