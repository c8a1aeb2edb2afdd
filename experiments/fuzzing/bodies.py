"""Requests to a served model that hypothesis writes: bodies in JSON, CSV and Arrow, whole or damaged, odd headers.

Schemathesis (see ``service.py``) keeps near the OpenAPI document; these requests know what the readers look at.
"""

from __future__ import annotations

import csv
import datetime
import http.client
import io
import json
import math
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

COLUMNS = ("number", "größe", "town", "garden", "sold", "words")
JSON, CSV, ARROW = "application/json", "text/csv", "application/vnd.apache.arrow.stream"
_TIMEOUT_SECONDS = 60
_WHOLE = [0.5, 3, "Rome", True, "2020-03-01", "red old big"]
_DAYS = st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31)).map(str)

_texts = st.text(max_size=12) | st.sampled_from(["", "NaN", "1e999", "-0.0", "Rome", "true", "\ud800", "\x00", "=1+1"])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _texts | _DAYS
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3), max_leaves=6
)
_names = st.sampled_from(COLUMNS) | _texts


@dataclass(frozen=True)
class Body:
    """What is posted: bytes, and the type that they are said to be of."""

    kind: str
    content: bytes


def _near(values: Any) -> Any:
    """A row that is right but for the given changes."""
    return st.dictionaries(_names, values, max_size=3).map(
        lambda change: dict(zip(COLUMNS, _WHOLE, strict=True)) | change
    )


_words = st.text(st.characters(codec="utf-8"), max_size=30)
_good = st.fixed_dictionaries({
    "number": st.none() | st.floats(-1e9, 1e9), "größe": st.integers(-9, 99), "garden": st.none() | st.booleans(),
    "town": st.sampled_from(["Rome", "Oslo", "Łódź"]) | _words, "sold": st.none() | _DAYS,
    "words": st.none() | _words,
})  # fmt: skip
_rows = _good | _near(_values) | st.fixed_dictionaries({}, optional=dict.fromkeys(COLUMNS, _values)) | _values
_labels = st.lists(st.sampled_from(["yes", "no"]) | _values, max_size=6)
_documents = (
    st.lists(_good, min_size=1, max_size=9)
    | st.lists(_rows, max_size=6)
    | st.fixed_dictionaries({"rows": st.lists(_near(_scalars), max_size=6), "target": _labels})
    | st.integers(2, 9).flatmap(
        lambda n: st.fixed_dictionaries(
            {"rows": st.lists(_good | _near(_values), min_size=n, max_size=n),
             "target": st.lists(st.sampled_from(["yes", "no"]), min_size=n, max_size=n)}
        )
    )
    | _values
)  # fmt: skip
_odd_json = st.sampled_from([
    b"[" * 5_000, b'{"a":' * 5_000, b'[{"number":' + b"9" * 5_000 + b"}]", b'[{"number":1e400}]', b"\xef\xbb\xbf[]",
    b'[{"number":1,"number":2}]', b'["\\ud800"]', b"\xff\xfe[\x00]\x00", b"[1]garbage", b"[NaN,Infinity,-Infinity]",
    b"null", b"",
])  # fmt: skip
_json = (
    st.builds(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), _documents)
    | _odd_json
)


def _csv(header: list[str], rows: list[list[str]], separator: str, end: str) -> bytes:
    return end.join(separator.join(cells) for cells in [header, *rows]).encode("utf-8", "surrogatepass")


_cells = _scalars.map(str) | st.sampled_from(['"', '"a""b"', "a,b", "\r", "\n", "yes", "no"])
_tables = st.builds(
    _csv,
    st.permutations([*COLUMNS, "target"]) | st.lists(_names, max_size=8),
    st.lists(st.lists(_cells, min_size=5, max_size=8), max_size=5),
    st.sampled_from([",", ",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)

_TYPES = [
    (pa.float64(), st.floats()), (pa.float16(), st.floats(width=16)), (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint8(), st.integers(0, 255)), (pa.bool_(), st.booleans()), (pa.string(), _words),
    (pa.large_string(), _words), (pa.binary(), st.binary(max_size=8)), (pa.date32(), st.dates()),
    (pa.timestamp("ns"), st.integers(-(2**62), 2**62)), (pa.timestamp("us", "UTC"), st.datetimes()),
    (pa.duration("s"), st.integers(-(10**9), 10**9)), (pa.time64("us"), st.times()),
    (pa.decimal128(20, 3), st.decimals(-(10**9), 10**9, places=3)), (pa.null(), st.none()),
    (pa.list_(pa.int8()), st.lists(st.integers(-9, 9), max_size=3)), (pa.struct([("a", pa.int8())]), st.just({"a": 1})),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["Rome", "Oslo", "yes", "no"])),
]  # fmt: skip


def _arrow(table: pa.Table, compression: str | None) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()


@st.composite
def _arrow_tables(draw: Any) -> bytes:
    names = draw(st.permutations([*COLUMNS, "target"]) | st.lists(_names, max_size=8))
    names = [name.encode("utf-8", "replace").decode() for name in names]
    n_rows = draw(st.integers(0, 4))
    columns = []
    for _ in names:
        kind, values = draw(st.sampled_from(_TYPES))
        cells = draw(st.lists(values | st.none(), min_size=n_rows, max_size=n_rows))
        columns.append(pa.array([None if isinstance(c, Decimal) and not c.is_finite() else c for c in cells], kind))
    table = pa.table(columns, names=names) if names else pa.table({})
    return _arrow(table, draw(st.sampled_from([None, None, None, "zstd", "lz4"])))


def _as_csv(rows: list[dict[str, Any]]) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def _as_arrow(rows: list[dict[str, Any]]) -> bytes:
    return _arrow(pa.Table.from_pylist(rows), None)


_labelled = st.lists(
    st.builds(lambda row, label: row | {"target": label}, _good, st.sampled_from(["yes", "no"])), min_size=1, max_size=9
)
_bodies = st.one_of(
    st.builds(Body, st.just(JSON), _json),
    st.builds(Body, st.just(CSV), _tables | _labelled.map(_as_csv)),
    st.builds(Body, st.just(ARROW), _arrow_tables() | _labelled.map(_as_arrow)),
    st.builds(Body, st.sampled_from([JSON, CSV, ARROW]), st.binary(max_size=300)),
)


@st.composite
def _damaged(draw: Any) -> Body:
    """A body with some bytes changed, put in or cut off."""
    body = draw(_bodies)
    content = bytearray(body.content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        content[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return Body(body.kind, bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content))


_queries = st.lists(
    st.tuples(st.sampled_from(["proba", "target", "version"]), st.sampled_from(["true", "target", "1", "0"]) | _texts),
    max_size=2,
)
_headers = st.fixed_dictionaries(
    {},
    optional={
        "Content-Encoding": st.sampled_from([*["identity"] * 9, "gzip"]),
        "Accept": st.sampled_from(["*/*", "text/html", "x"]),
        "X-API-Key": st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8),
    },
)
_kinds = st.sampled_from([*[None] * 20, f"{JSON}; charset=utf-16", "text/plain", "", JSON, CSV, ARROW])
"""A type to say instead of the true one, seldom."""

_odd_requests = st.tuples(
    st.sampled_from(["/predict", "/predict", "/adapt", "/rollback"]), _bodies | _damaged(), _queries, _headers, _kinds
)


def _as_json(rows: list[dict[str, Any]]) -> bytes:
    target = [row["target"] for row in rows]
    rows = [{name: cell for name, cell in row.items() if name != "target"} for row in rows]
    return json.dumps({"rows": rows, "target": target}).encode()


_right_requests = st.tuples(
    st.just("/adapt"),
    st.one_of(
        _labelled.map(lambda rows: Body(JSON, _as_json(rows))),
        _labelled.map(lambda rows: Body(CSV, _as_csv(rows))),
        _labelled.map(lambda rows: Body(ARROW, _as_arrow(rows))),
    ),
    st.just([("target", "target")]),
    st.just({}),
    st.none(),
) | st.tuples(
    st.just("/predict"),
    st.lists(_good, min_size=1, max_size=9).map(lambda rows: Body(JSON, json.dumps(rows).encode())),
    st.just([("proba", "true")]),
    st.just({}),
    st.none(),
)
"""What the service has to answer with 200, mostly."""


def fuzz_bodies(url: str, n_requests: int, first_seed: int = 0) -> Counter[int]:
    """Post bodies until there were enough; answers by status.

    Raises
    ------
    AssertionError
        An answer of 500 or more, one that is no JSON, or none at all; hypothesis prints the smallest such request.
    """
    home = urlsplit(url)
    seen: Counter[int] = Counter()
    connection = http.client.HTTPConnection(str(home.hostname), home.port, timeout=_TIMEOUT_SECONDS)

    def post(path: str, body: Body, headers: dict[str, str]) -> tuple[int, bytes]:
        for last in (False, True):
            try:
                connection.request("POST", path, body.content, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (http.client.HTTPException, OSError):
                connection.close()  # the service closes idle connections; a new one has to be answered
                if last:
                    raise
        raise AssertionError

    @seed(first_seed)
    @settings(max_examples=n_requests, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(_odd_requests | _odd_requests | _right_requests)
    def one_request(request: tuple[str, Body, Any, dict[str, str], str | None]) -> None:
        path, body, query, headers, kind = request
        options = "&".join(f"{name}={quote(value.encode('utf-8', 'replace'))}" for name, value in query)
        headers = {**headers, "Content-Type": body.kind if kind is None else kind}
        status, content = post(f"{path}?{options}", body, headers)
        seen[status] += 1
        assert status < 500, (status, content[:300])
        document = json.loads(content)
        assert status != 200 or path != "/predict" or _are_predictions(document), document

    one_request()
    connection.close()
    return seen


def _are_predictions(document: Any) -> bool:
    """Every prediction is one of the two classes, and probabilities sum to one."""
    known = all(label in ("yes", "no") for label in document["predictions"])
    shares = document.get("probabilities") or []
    return known and all(
        math.isclose(sum(row.values() if isinstance(row, dict) else row), 1.0, abs_tol=1e-6) for row in shares
    )
