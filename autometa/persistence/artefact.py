"""save and load: a model as a JSON manifest and data-only files, never pickle.

::

    model/
      manifest.json        format version, libraries, columns, classes, members, size and SHA-256 of every file
      manifest.sha256      SHA-256 of the manifest
      encoder-tree.*       what turns a table into a matrix
      model-0-0.*          first model of the first member: one file per part, by codec
      record-ledger.*      what the estimator kept beside the model
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from autometa.correction import Correction
from autometa.data import ColumnKind, TaskType
from autometa.exceptions import ArtefactError
from autometa.persistence.codecs import codec_named, find_codec
from autometa.persistence.sealed_files import (
    MAX_BYTES,
    check_name,
    check_target,
    open_source,
    read_sealed,
    write_sealed,
)
from autometa.persistence.sealed_files import read_manifest as _read_manifest
from autometa.persistence.states import from_files, pack, to_files, unpack
from autometa.predictor import Column, Member, Predictor
from autometa.versions import installed_versions

FORMAT = "autometa-model"
FORMAT_VERSION = 3
"""Raised when an older release could not read what this one writes: 2 added corrections, 3 nets with their birth. Every
version that was released still loads."""

_LIBRARIES = {
    "forest": ("scikit-learn",),
    "histogram": ("scikit-learn",),
    "plain": ("scikit-learn",),
    "neighbors": ("scikit-learn",),
    "skops": ("scikit-learn", "skops"),
    "lightgbm": ("lightgbm",),
    "xgboost": ("xgboost", "xgboost-cpu"),
    "catboost": ("catboost",),
    "net": ("torch",),
    "adaptable_net": ("torch",),
}


def save(model: Any, path: str | PathLike[str], *, overwrite: bool = False, trusted: Sequence[str] = ()) -> Path:
    """Save a fitted model as data.

    The files are written beside ``path`` and moved there at the end: whatever interrupts the writing leaves an older
    artefact as it was.

    Parameters
    ----------
    model : Predictor, or fitted estimator with a ``predictor_`` attribute
        A ``MetaInitializer`` is one too: its net before any step is saved, with the birth. An estimator may also have
        ``_artefact_records() -> dict of str to JSON``, whose values are kept beside it.
    path : path
        A directory, or one file if it ends with ``.zip``.
    overwrite : bool, default=False
        Replace an artefact that lies there. Anything else is never deleted.
    trusted : sequence of str, default=()
        Full names of further types ("package.module.Class") in scikit-learn estimators of your own families;
        :func:`load` needs the same.

    Returns
    -------
    Path

    Raises
    ------
    ArtefactError
        The path exists, or a part of the model cannot be written as data; the message names it.
    TypeError
        The model is not fitted or not of this library.

    Examples
    --------
    >>> save(object(), "model")
    Traceback (most recent call last):
    TypeError: The model must be a fitted AutoMetaClassifier, AutoMetaRegressor or Predictor. Got object instead.
    """
    predictor, records = _unwrap(model)
    path = Path(path)
    check_target(path, overwrite=overwrite)
    manifest, files = _describe(predictor, {**predictor.records, **records}, trusted)
    write_sealed(path, manifest, files, overwrite=overwrite)
    return path


def load(path: str | PathLike[str], *, max_bytes: int = MAX_BYTES, trusted: Sequence[str] = ()) -> Predictor:
    """Load what :func:`save` wrote. Predictions are bit-equal to those of the model that was saved.

    Parameters
    ----------
    path : path
        A directory or zip.
    max_bytes : int, default=4 GiB
        The most that all files may hold together once unpacked.
    trusted : sequence of str, default=()
        See :func:`save`. Name only types that you know.

    Returns
    -------
    Predictor

    Raises
    ------
    ArtefactError
        There is no artefact, or it is damaged, too large, of a newer format, or names what is not listed. Nothing is
        run, and nothing is written.
    """
    path = Path(path)
    manifest, files = read_sealed(path, max_bytes=max_bytes)
    try:
        _check_format(manifest)
        return _build(manifest, files, trusted)
    except ArtefactError:
        raise
    except Exception as error:  # parsers, libraries and arrays each have exceptions of their own
        raise ArtefactError(_failure(path, manifest, error)) from error


def read_manifest(path: str | PathLike[str]) -> dict[str, Any]:
    """The manifest alone, checked against its seal and format: schema, classes, members, libraries, files.

    Raises
    ------
    ArtefactError
        As :func:`load`.
    """
    with open_source(Path(path)) as source:
        manifest = _read_manifest(source)
        _check_format(manifest)
    return manifest


def _unwrap(model: Any) -> tuple[Predictor, dict[str, Any]]:
    predictor = model if isinstance(model, Predictor) else getattr(model, "predictor_", None)
    if not isinstance(predictor, Predictor):
        raise TypeError(
            "The model must be a fitted AutoMetaClassifier, AutoMetaRegressor or Predictor. "
            f"Got {type(model).__name__} instead."
        )
    hook = getattr(model, "_artefact_records", None)
    return predictor, dict(hook()) if hook is not None else {}


def _describe(
    predictor: Predictor, records: Mapping[str, Any], trusted: Sequence[str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest (without the list of files) and files of a model."""
    files: dict[str, bytes] = {}

    def put(stem: str, parts: Mapping[str, bytes]) -> dict[str, str]:
        names = {suffix: check_name(f"{stem}.{suffix}") for suffix in parts}
        files.update({names[suffix]: bytes(data) for suffix, data in parts.items()})
        return names

    members, used = [], set()
    for i, member in enumerate(predictor.members):
        models = []
        for j, model in enumerate(member.models):
            codec = find_codec(model)
            used.add(codec.name)
            names = put(f"model-{i}-{j}", codec.write(model, trusted))
            models.append({"codec": codec.name, "classes": list(member.class_codes[j]), "files": names})
        members.append(
            {"family": member.family, "config": _inline(dict(member.config)), "matrix": member.matrix,
             "weight": float(member.weight), "models": models}
        )  # fmt: skip
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "libraries": _versions(used),
        "task": str(predictor.task),
        "classes": None if predictor.classes is None else _inline_array(predictor.classes),
        "columns": [_column_entry(column) for column in predictor.columns],
        "temperature": float(predictor.temperature),
        "members": members,
        "encoders": {
            kind: put(f"encoder-{kind}", to_files(encoder.to_state())) for kind, encoder in predictor.encoders.items()
        },
        "correction": None
        if predictor.correction is None
        else put("correction", to_files(predictor.correction.to_state())),
        "records": {name: put(f"record-{name}", to_files(value)) for name, value in records.items()},
    }
    return manifest, files


def _build(manifest: Mapping[str, Any], files: Mapping[str, bytes], trusted: Sequence[str]) -> Predictor:
    from autometa.preprocessing import TableEncoder

    def get(names: Mapping[str, str]) -> dict[str, bytes]:
        return {suffix: files[name] for suffix, name in names.items()}

    correction = manifest.get("correction")  # version 1 has none
    members = tuple(
        Member(
            entry["family"], unpack(entry["config"], {}), entry["matrix"],
            tuple(codec_named(model["codec"]).read(get(model["files"]), trusted) for model in entry["models"]),
            float(entry["weight"]),
            tuple(tuple(map(int, model["classes"])) for model in entry["models"]),
        )
        for entry in manifest["members"]
    )  # fmt: skip
    return Predictor(
        members,
        {kind: TableEncoder.from_state(from_files(get(names))) for kind, names in manifest["encoders"].items()},
        TaskType(manifest["task"]),
        tuple(_column(entry) for entry in manifest["columns"]),
        None if manifest["classes"] is None else _array(manifest["classes"]),
        temperature=float(manifest["temperature"]),
        records={name: from_files(get(names)) for name, names in manifest["records"].items()},
        libraries={str(name): str(version) for name, version in manifest["libraries"].items()},
        correction=None if correction is None else Correction.from_state(from_files(get(correction))),
    )


def _column_entry(column: Column) -> dict[str, Any]:
    return {"name": _inline(column.name), "kind": str(column.kind), "dtype": column.dtype,
            "categories": list(column.categories)}  # fmt: skip


def _column(entry: Mapping[str, Any]) -> Column:
    return Column(
        unpack(entry["name"], {}), ColumnKind(entry["kind"]), str(entry["dtype"]), tuple(map(str, entry["categories"]))
    )


def _inline(value: Any) -> Any:
    """A value for the manifest itself, where there are no arrays of numbers."""
    arrays: dict[str, Any] = {}
    packed = pack(value, arrays)
    if arrays:
        raise ArtefactError(f"A configuration or column name must hold no array. Got {value!r:.80}.")
    return packed


def _inline_array(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Class labels stay readable in the manifest, with their dtype; dates as whole numbers of their unit."""
    items = values.view(np.int64) if values.dtype.kind in "mM" else values
    return {"dtype": values.dtype.str, "values": [_inline(item) for item in items.tolist()]}


def _array(entry: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(entry["dtype"])
    values = np.empty(len(entry["values"]), dtype=object)
    values[:] = [unpack(value, {}) for value in entry["values"]]
    return values.astype(np.int64).view(dtype) if dtype.kind in "mM" else values.astype(dtype)


def _versions(codecs: Iterable[str]) -> dict[str, str]:
    wanted = [
        "autometa-ml",
        "numpy",
        "pandas",
        *dict.fromkeys(name for codec in sorted(codecs) for name in _LIBRARIES[codec]),
    ]
    return {"python": ".".join(map(str, sys.version_info[:3])), **installed_versions(wanted)}


def _check_format(manifest: Mapping[str, Any]) -> None:
    version = manifest.get("format_version")
    if manifest.get("format") != FORMAT or type(version) is not int or version < 1:
        raise ArtefactError(f"The manifest must be of format {FORMAT!r}. Got {manifest.get('format')!r:.40} instead.")
    if version > FORMAT_VERSION:
        raise ArtefactError(
            f"The artefact has format version {version}, this release of autometa reads up to {FORMAT_VERSION}. "
            "Upgrade autometa to load it."
        )


def _failure(path: Path, manifest: Mapping[str, Any], error: Exception) -> str:
    libraries = manifest.get("libraries")
    saved = ", ".join(f"{k} {v}" for k, v in libraries.items()) if isinstance(libraries, Mapping) else "unknown"
    reason = f"{type(error).__name__}: {error!s:.300}"
    return f"The artefact at {str(path)!r} cannot be rebuilt: {reason}. It was saved with {saved:.300}."
