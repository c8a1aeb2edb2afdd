"""Real tables as sources of tasks, encoded once and kept in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autometa.collection import load_collection, load_entry
from autometa.exceptions import DataError
from autometa.meta_training.generation_tasks import TableSource


def load_sources(collection: str, *, cache: Path | None = None) -> list[TableSource]:
    """All usable tables of a collection, in its order; those that are not in AUTOMETA_DATA are left out."""
    found = []
    for entry in load_collection(collection):
        path = None if cache is None else cache / f"{entry.name}.npz"
        if path is not None and path.is_file():
            with np.load(path) as file:
                x, y = file["x"], file["y"]
            source = TableSource(entry.name, entry.group, x, y, int(y.max()) + 1 if y.dtype.kind == "i" else 0)
        else:
            try:
                source = TableSource.of(load_entry(entry), entry.group)
            except DataError as error:
                print(f"left out: {entry.name}: {error}")
                continue
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, x=source.x, y=source.y)
        if source.is_usable:
            found.append(source)
    return found
