"""An append-only folder of Parquet shards: a shard is there as a whole or not at all."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

_TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` on a temporary neighbour, flush it to disk and rename it to ``path``.

    A process killed at any moment, or a full disk, leaves either the whole file or none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself survives a power cut only once the folder is flushed
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append_shard(folder: Path, prefix: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> Path:
    """Write rows as one new shard. Shards sort by name in the order in which they were written."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    path = folder / f"{prefix}-{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.parquet"
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    return path


def read_shards(folder: Path, prefix: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of all readable shards, oldest first. A damaged shard is skipped with a warning."""
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    return pa.concat_tables([wanted.empty_table(), *(table for _, table in _readable(folder, prefix, wanted))])


def compact_shards(folder: Path, prefix: str, schema: pa.Schema, *, keys: Sequence[str]) -> int:
    """Merge all readable shards into one, keeping the last row of each key; answers the number of rows.

    The merged shard is written before its parts are deleted, so rows may be there twice after a crash, never lost;
    readers drop the copies.
    """
    parts = list(_readable(folder, prefix, schema))
    if len(parts) < 2:
        return sum(table.num_rows for _, table in parts)
    merged = last_rows(pa.concat_tables([table for _, table in parts]), keys)
    path = folder / f"{prefix}-{time.time_ns():020d}-merged.parquet"
    write_atomically(path, lambda temporary: pq.write_table(merged, temporary, compression="zstd"))
    for old, _ in parts:
        old.unlink()
    return int(merged.num_rows)


def last_rows(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The table with only the last row of each combination of keys."""
    frame = pd.DataFrame({key: table.column(key).to_pandas() for key in keys})
    return table.filter(pa.array(~frame.duplicated(keep="last").to_numpy()))


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder: a second writer gets a ``RuntimeError``. The hold ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: one writer at a time is then up to the user
        yield
        return
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(f"Another run is writing to {str(folder)!r}. Wait for it or stop it first.") from error
        for left_over in folder.glob(f"*{_TEMPORARY}"):
            left_over.unlink()
        yield


def _readable(folder: Path, prefix: str, schema: pa.Schema) -> Iterator[tuple[Path, pa.Table]]:
    for path in sorted(folder.glob(f"{prefix}-*.parquet")):
        try:
            with pq.ParquetFile(path) as file:
                known = [name for name in schema.names if name in file.schema_arrow.names]
                table = file.read(columns=known)
            columns = [_column(table, field) for field in schema]
            yield path, pa.Table.from_arrays(columns, schema=schema)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"The shard {path.name} is damaged and is ignored: {reason}", RuntimeWarning, stacklevel=3)


def _column(table: pa.Table, field: pa.Field) -> Any:
    """A column in the type of the schema; nulls where an older shard does not have it."""
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    return table.column(field.name).cast(field.type)
