"""Bodies in CSV and Arrow as tables, within limits."""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Iterator
from typing import Any

import pandas as pd

from autometa.serving.problems import RequestProblem

CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def read_csv(body: bytes, *, max_rows: int) -> pd.DataFrame:
    """A CSV with a header, in UTF-8, read as :func:`autometa.data.read_table` reads a file.

    Raises
    ------
    RequestProblem
        422 where it is no CSV or names a column twice, 413 for too many rows.
    """
    try:
        text = body.decode("utf-8-sig")
        names = next(csv.reader(io.StringIO(text)), [])
        twice = sorted({name for name in names if name and names.count(name) > 1}) if len(names) < 10_000 else []
        if twice:
            raise RequestProblem(422, f"Column names must be unique. {twice[0]!r:.60} occurs more than once.")
        frame = pd.read_csv(io.StringIO(text), low_memory=False, nrows=max_rows + 1, index_col=False)
    except RequestProblem:
        raise
    except (ValueError, OverflowError, csv.Error, LookupError) as error:  # pandas' own are ValueErrors
        raise RequestProblem(422, f"The body cannot be read as CSV in UTF-8: {error!s:.200}.") from None
    return _limited(frame, max_rows)


def read_arrow(body: bytes, *, max_rows: int) -> pd.DataFrame:
    """An Arrow IPC stream of flat, uncompressed columns.

    Raises
    ------
    RequestProblem
        422 where it is damaged, compressed, nested or names a column twice, 413 for too many rows.
    """
    import pyarrow as pa

    try:
        if any(map(_is_compressed, _messages(body))):
            raise RequestProblem(422, "An Arrow stream must not be compressed: its size could not be limited.")
        frame = _read_stream(pa, body, max_rows)
    except RequestProblem:
        raise
    except Exception as error:  # a damaged stream may end in an error of any kind
        raise RequestProblem(422, f"The body cannot be read as an Arrow stream: {error!s:.200}.") from None
    return _limited(frame, max_rows)


def _read_stream(pa: Any, body: bytes, max_rows: int) -> pd.DataFrame:
    batches, n_rows = [], 0
    with pa.ipc.open_stream(body) as reader:
        names = reader.schema.names
        if len(set(names)) < len(names):
            raise RequestProblem(422, "Column names must be unique.")
        nested = [field.name for field in reader.schema if not _is_flat(pa, field.type)]
        if nested:
            raise RequestProblem(422, f"Columns must be flat. Got {nested[0]!r:.60} of another type.")
        for batch in reader:
            n_rows += batch.num_rows
            if n_rows > max_rows:
                raise RequestProblem(413, f"A request must have at most {max_rows} rows: send fewer at a time.")
            batch.validate(full=True)
            batches.append(batch)
        table = pa.Table.from_batches(batches, schema=reader.schema)
    return pd.DataFrame(table.replace_schema_metadata(None).to_pandas())


def _is_flat(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_flat(pa, kind.value_type) and not pa.types.is_dictionary(kind.value_type)
    tests = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string,
        pa.types.is_timestamp, pa.types.is_date, pa.types.is_decimal, pa.types.is_duration, pa.types.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _messages(body: bytes) -> Iterator[bytes]:
    """Metadata of the messages of a stream: 4 bytes -1, 4 bytes length, a flatbuffer, a body."""
    position = 0
    while position + 8 <= len(body):
        mark, length = struct.unpack_from("<ii", body, position)
        if mark != -1 or length <= 0:
            return
        metadata = body[position + 8 : position + 8 + length]
        yield metadata
        position += 8 + length + _Table(metadata).number(3, "<q")


class _Table:
    """One table of a flatbuffer, as far as the Arrow format needs it here."""

    def __init__(self, data: bytes, position: int | None = None) -> None:
        self.data = data
        self.position = struct.unpack_from("<I", data)[0] if position is None else position
        self.fields = self.position - struct.unpack_from("<i", data, self.position)[0]

    def place(self, field: int) -> int | None:
        size = struct.unpack_from("<H", self.data, self.fields)[0]
        if 4 + 2 * field >= size:
            return None
        offset = struct.unpack_from("<H", self.data, self.fields + 4 + 2 * field)[0]
        return self.position + offset if offset else None

    def number(self, field: int, form: str) -> int:
        place = self.place(field)
        return 0 if place is None else int(struct.unpack_from(form, self.data, place)[0])

    def table(self, field: int) -> _Table | None:
        place = self.place(field)
        return None if place is None else _Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message is a batch whose buffers are compressed (Message.fbs of the Arrow format)."""
    message = _Table(metadata)
    kind, header = message.number(1, "<B"), message.table(2)
    if kind == _DICTIONARY_BATCH and header is not None:
        header = header.table(1)
    return kind in (_DICTIONARY_BATCH, _RECORD_BATCH) and header is not None and header.place(3) is not None


def _limited(frame: pd.DataFrame, max_rows: int) -> pd.DataFrame:
    if len(frame) > max_rows:
        raise RequestProblem(413, f"A request must have at most {max_rows} rows: send fewer at a time.")
    if len(frame) == 0:
        raise RequestProblem(422, "A request must have at least one row.")
    return frame
