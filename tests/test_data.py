"""Datasets: kinds of columns, task inference, errors in one sentence, files, fingerprints, subsamples."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autometa.data import (
    MAX_CATEGORIES,
    ColumnKind,
    Dataset,
    TaskType,
    as_dataset,
    as_frame,
    infer_kind,
    infer_task,
    read_table,
    stratified_sample,
)
from autometa.exceptions import DataError

N = 40
RNG = np.random.default_rng(0)
DAYS = pd.date_range("2024-01-30", periods=N)
NUMERIC, BOOLEAN, CATEGORICAL = ColumnKind.NUMERIC, ColumnKind.BOOLEAN, ColumnKind.CATEGORICAL
DATETIME, TEXT, EMPTY = ColumnKind.DATETIME, ColumnKind.TEXT, ColumnKind.EMPTY

COLUMNS = [
    ("floats", pd.Series(RNG.normal(size=N)), NUMERIC),
    ("half floats", pd.Series(RNG.normal(size=N), dtype="float16"), NUMERIC),
    ("bytes", pd.Series(np.arange(N), dtype="uint8"), NUMERIC),
    ("zero and one", pd.Series([0, 1] * (N // 2)), NUMERIC),
    ("nullable integers", pd.Series([1, 2, pd.NA, 4] * 10, dtype="Int64"), NUMERIC),
    ("infinities", pd.Series([1.0, np.inf, -np.inf, 2.0]), NUMERIC),
    ("timedeltas", pd.Series(pd.to_timedelta(np.arange(N), unit="h")), NUMERIC),
    ("decimals", pd.Series([Decimal("1.5"), Decimal("2.25"), None] * 10), NUMERIC),
    ("numbers and pd.NA as objects", pd.Series([1, 2.5, pd.NA] * 10, dtype=object), NUMERIC),
    ("numbers as text", pd.Series(["1", "2.5", "-3e4", None] * 10), NUMERIC),
    ("booleans", pd.Series([True, False] * 20), BOOLEAN),
    ("nullable booleans", pd.Series([True, pd.NA, False, True] * 10, dtype="boolean"), BOOLEAN),
    ("booleans as objects", pd.Series([True, None, False] * 10, dtype=object), BOOLEAN),
    ("words", pd.Series(["red", "green", None] * 10), CATEGORICAL),
    ("categories", pd.Series(["a", "b"] * 20, dtype="category"), CATEGORICAL),
    ("categories of numbers", pd.Series([1, 2] * 20, dtype="category"), CATEGORICAL),
    ("numbers and words", pd.Series([1, "two", None, 3.0] * 10, dtype=object), CATEGORICAL),
    ("lists", pd.Series([[1], [2], [1, 2]] * 10), CATEGORICAL),
    ("intervals", pd.Series(pd.cut(np.arange(N), 4).astype(object)), CATEGORICAL),
    ("one long category", pd.Series(["a fine and very long name of a thing", "b"] * 20), CATEGORICAL),
    ("dates", pd.Series(DAYS), DATETIME),
    ("dates with a zone", pd.Series(DAYS.tz_localize("Europe/Rome")), DATETIME),
    ("date objects", pd.Series([dt.date(2024, 1, 1), dt.date(2024, 5, 2), None] * 10, dtype=object), DATETIME),
    ("dates as text", pd.Series(DAYS.strftime("%Y-%m-%d")), DATETIME),
    ("times as text", pd.Series([f"2024-03-{d:02d}T10:30:00Z" for d in range(1, 29)]), DATETIME),
    ("periods", pd.Series(DAYS.to_period("M")), DATETIME),
    ("sentences", pd.Series([f"this is review number {i} of many" for i in range(N)]), TEXT),
    ("many names", pd.Series([f"name{i}" for i in range(MAX_CATEGORIES + 1)]), TEXT),
    ("many categories", pd.Series([f"n{i}" for i in range(MAX_CATEGORIES + 1)], dtype="category"), TEXT),
    ("constant", pd.Series([3.0] * N), EMPTY),
    ("all missing", pd.Series([None] * N, dtype=object), EMPTY),
    ("all NaN", pd.Series([np.nan] * N), EMPTY),
    ("all pd.NA", pd.Series([pd.NA] * N, dtype="Int64"), EMPTY),
    ("one value or none", pd.Series([1.0, np.nan] * 20), NUMERIC),
]


@pytest.mark.parametrize(("column", "kind"), [(c, k) for _, c, k in COLUMNS], ids=[name for name, _, _ in COLUMNS])
def test_kinds_of_columns(column, kind):
    assert infer_kind(column) is kind
    assert infer_kind(column.sample(frac=1.0, random_state=1)) is kind


@pytest.mark.parametrize(
    ("dtype", "values", "kind"),
    [
        ("int64[pyarrow]", [1, 2, None], NUMERIC),
        ("bool[pyarrow]", [True, False, None], BOOLEAN),
        ("string[pyarrow]", ["a", "b", None], CATEGORICAL),
        ("decimal128(5, 2)[pyarrow]", [Decimal("1.5"), Decimal("2.25"), None], NUMERIC),
        ("list<item: int64>[pyarrow]", [[1], [1, 2], None], CATEGORICAL),
        ("timestamp[ns][pyarrow]", [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2), None], DATETIME),
    ],
)
def test_kinds_of_arrow_columns(dtype, values, kind):
    column = pd.Series(values * 10, dtype=arrow_dtype(dtype))
    assert infer_kind(column) is kind
    dataset = Dataset.from_arrays(column.to_frame("c"), np.arange(30) % 2)
    assert len(dataset.fingerprint) == 32


def arrow_dtype(text):
    pyarrow = pytest.importorskip("pyarrow")
    types = {"decimal128(5, 2)": pyarrow.decimal128(5, 2), "list<item: int64>": pyarrow.list_(pyarrow.int64())}
    known = types.get(text.removesuffix("[pyarrow]"))
    return text if known is None else pd.ArrowDtype(known)


def test_a_rare_value_in_a_long_column_is_not_lost():
    column = pd.Series(np.zeros(50_000))
    column[12_345] = 1.0
    assert infer_kind(column) is NUMERIC


@pytest.mark.parametrize(
    ("target", "task"),
    [
        ([0, 1] * 10, "binary"),
        ([1.0, 2.0] * 10, "binary"),
        ([True, False] * 10, "binary"),
        (["yes", "no"] * 10, "binary"),
        ([0, 1, 1], "binary"),
        ([3, 5, 9] * 10, "multiclass"),
        (list(range(20)) * 5, "multiclass"),
        (list(range(21)) * 10, "regression"),
        ([1, 2, 3, 4, 5], "regression"),
        ([0.5, 1.0, 1.5] * 10, "regression"),
        (list("abc") * 10, "multiclass"),
        (pd.Series([1.5, 2.5, 3.5] * 10, dtype="category"), "multiclass"),
        (pd.Series([1, 2, 3] * 10, dtype="Int64"), "multiclass"),
        (pd.Series([1.5, 2.5, 3.25] * 10, dtype="Float64"), "regression"),
    ],
)
def test_task_inference(target, task):
    assert infer_task(pd.Series(target)) == task
    dataset = Dataset.from_arrays(np.arange(len(target)).reshape(-1, 1), target)
    assert dataset.task == task
    assert (dataset.classes is None) == (task == "regression")


@pytest.mark.parametrize("make", [float, Decimal], ids=["float objects", "decimals"])
def test_numbers_in_an_object_target_are_numbers(make):
    y = pd.Series([make("1.5"), None, make("2.25"), make("7.125")] * 10, dtype=object)
    with pytest.warns(UserWarning, match="10 rows without a target are left out"):
        dataset = Dataset.from_arrays(np.arange(40).reshape(-1, 1), y)
    assert dataset.task is TaskType.REGRESSION
    assert dataset.y[:3].tolist() == [1.5, 2.25, 7.125]
    assert dataset.X["x0"].tolist()[:3] == [0, 2, 3]


def test_two_labels_under_any_classification_task():
    X = np.arange(30).reshape(-1, 1)
    assert Dataset.from_arrays(X, [0, 1, 2] * 10, task="binary").task is TaskType.MULTICLASS
    assert Dataset.from_arrays(X, [5, 7] * 15, task="multiclass").task is TaskType.BINARY
    dataset = Dataset.from_arrays(X, ["b", "a"] * 15)
    assert dataset.classes.tolist() == ["a", "b"]
    assert dataset.y[:2].tolist() == [1, 0]
    mixed = Dataset.from_arrays(X, pd.Series([1, "a", "b"] * 10, dtype=object))
    assert mixed.classes.tolist() == ["1", "a", "b"]


TABLE = pd.DataFrame({"a": np.arange(10.0), "b": list("xyxyxyxyxy"), "y": [0, 1] * 5})
ERRORS = [
    (lambda: as_dataset(TABLE, target="z"), r"target column 'z' is not in the table. Its columns are 'a', 'b', 'y'"),
    (lambda: as_dataset(TABLE), "either target=<column name> or y=<values>"),
    (lambda: as_dataset(TABLE, TABLE["y"], target="y"), "and not both"),
    (lambda: as_dataset(TABLE.assign(y=1), target="y", task="binary"), r"at least 2 classes. Got one class: \[1\]"),
    (lambda: as_dataset(TABLE.assign(y=0), target="y", task="binary"), r"Got one class: \[0\]"),
    (lambda: as_dataset(TABLE.assign(y="no"), target="y"), r"Got one class: \['no'\]"),
    (lambda: as_dataset(TABLE.assign(y=None), target="y"), "target has no value at all: every row is missing"),
    (lambda: as_dataset(TABLE.assign(y=np.inf), target="y"), "target must be finite. Got infinite"),
    (lambda: as_dataset(TABLE.assign(y=[np.inf, 1] * 5), target="y", task="binary"), "Class labels must be finite"),
    (lambda: as_dataset(TABLE, target="b", task="regression"), "regression target must be numeric"),
    (lambda: as_dataset(TABLE.set_axis(["a", "a", "y"], axis=1), target="y"), "must be unique. 'a' occur more than"),
    (lambda: as_dataset(TABLE.iloc[:0], target="y"), r"table is empty: it has 0 sample\(s\) and 2 feature\(s\)"),
    (lambda: as_dataset(TABLE[["y"]], target="y"), r"table is empty: it has 10 sample\(s\) and 0 feature\(s\)"),
    (lambda: as_dataset(TABLE.iloc[:2], target="y"), "At least 3 rows with a target are needed. Got 2 rows"),
    (lambda: as_dataset(TABLE, pd.Series([[1], [2]] * 5)), "target must hold numbers or labels. Got list values"),
    (lambda: as_dataset(TABLE, pd.Series([1j, 2.0] * 5)), "Complex data not supported"),
    (lambda: as_dataset(TABLE, [0, 1] * 4), "same number of rows. Got 10 and 8"),
    (lambda: as_dataset(TABLE, np.ones((10, 2))), r"y must be one column. Got shape \(10, 2\)"),
    (lambda: as_dataset(np.ones(10), [0, 1] * 5), r"table of rows and columns. Got 1 dimension\(s\)"),
    (lambda: as_dataset(np.ones((10, 1)) * 1j, [0, 1] * 5), "Complex data not supported"),
    (lambda: as_dataset(TABLE, target="y", groups=[1, 2]), r"groups must have one value per row \(10\). Got 2"),
    (lambda: as_dataset(TABLE, target="y", groups="farm"), "groups column 'farm' is not in the table"),
    (lambda: as_dataset(TABLE, target="y", sample_weight=-np.ones(10)), "sample_weight must be .* values >= 0"),
    (lambda: as_dataset(TABLE, target="y", sample_weight=np.zeros(10)), "must not be zero for every row"),
    (lambda: as_dataset("no/such/file.csv", target="y"), "There is no file 'no/such/file.csv'"),
]


@pytest.mark.parametrize(("act", "match"), ERRORS, ids=[match[:40] for _, match in ERRORS])
def test_errors_say_what_is_wrong(act, match):
    with pytest.raises(DataError, match=match) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_columns_of_two_levels_are_refused():
    frame = pd.DataFrame(np.ones((5, 2)), columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")]))
    with pytest.raises(DataError, match="one level of names"):
        Dataset.from_arrays(frame, [0, 1, 0, 1, 0])


def test_rows_without_a_target_are_left_out_everywhere():
    y = pd.Series([0, None, 1, 0, 1], dtype="Int64")
    with pytest.warns(UserWarning, match="1 rows without a target"):
        dataset = as_dataset(np.arange(5).reshape(-1, 1), y, groups=list("abcde"), time=range(5), sample_weight=[1] * 5)
    assert dataset.X["x0"].tolist() == [0, 2, 3, 4]
    assert dataset.groups.tolist() == list("acde")
    assert dataset.time.tolist() == [0, 2, 3, 4]
    assert dataset.y.tolist() == [0, 1, 0, 1]


def test_columns_with_a_role():
    frame = TABLE.assign(farm=list("aabbccddee"), day=range(10), w=1.0)
    dataset = Dataset.from_frame(frame, "y", groups="farm", time="day", sample_weight="w", name="farms")
    assert list(dataset.X) == ["a", "b", "day"]
    assert dataset.groups.tolist() == list("aabbccddee")
    assert (dataset.name, dataset.n_features, dataset.n_classes, dataset.n_categorical) == ("farms", 3, 2, 1)


def test_what_can_be_read_as_a_table():
    assert list(as_frame([[1, 2], [3, 4]])) == ["x0", "x1"]
    assert as_frame(np.array([[1, "a"], [2, "b"]], dtype=object)).dtypes["x0"] == np.int64
    assert as_frame(TABLE) is TABLE
    assert as_dataset(as_dataset(TABLE, target="y")).n_rows == 10


def test_polars_and_pandas_are_read_alike():
    polars = pytest.importorskip("polars")
    table = polars.DataFrame({"a": [1.0, None, 3.0, 4.0], "b": ["x", "y", "x", None], "y": ["n", "p", "n", "p"]})
    dataset = as_dataset(table, target="y")
    again = as_dataset(table.drop("y"), table["y"])
    assert dataset.kinds == {"a": NUMERIC, "b": CATEGORICAL}
    assert dataset.fingerprint == again.fingerprint == as_dataset(table.to_pandas(), target="y").fingerprint


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.parquet", "t.pq"])
def test_files(tmp_path, name):
    path = tmp_path / name
    if name.endswith(("parquet", "pq")):
        TABLE.to_parquet(path)
    else:
        TABLE.to_csv(path, index=False, sep="\t" if "tsv" in name else ",")
    dataset = as_dataset(path, target="y")
    assert dataset.name.startswith("t")
    assert dataset.fingerprint == as_dataset(TABLE, target="y").fingerprint
    assert as_dataset(str(path), target="y", name="mine").name == "mine"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("twice.csv", b"a,b,a\n1,2,3\n", "must be unique. 'a' occur more than once in .*twice.csv"),
        ("empty.csv", b"", "cannot be read as a table"),
        ("broken.parquet", b"PAR1 not really", "cannot be read as a table"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3,4\n", "cannot be read as a table"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        read_table(tmp_path / name)


def table_of(seed, n_rows=30):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "number": rng.normal(size=n_rows),
            "whole": rng.integers(0, 5, n_rows),
            "word": rng.choice(["a", "b", "c"], n_rows),
            "day": pd.date_range("2024-01-01", periods=n_rows),
            "flag": rng.random(n_rows) < 0.5,
        }
    )
    frame.loc[rng.random(n_rows) < 0.2, ["number", "word"]] = None
    return frame, rng.permutation(np.arange(n_rows) % 3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.randoms(use_true_random=False))
def test_fingerprint_is_blind_to_order_and_names(seed, order):
    X, y = table_of(seed)
    fingerprint = Dataset.from_arrays(X, y).fingerprint
    rows, columns = list(range(len(X))), list(X)
    order.shuffle(rows)
    order.shuffle(columns)
    other = X.iloc[rows][columns].set_axis([f"c{i}" for i in range(5)], axis=1)
    assert Dataset.from_arrays(other, y[rows], name="other").fingerprint == fingerprint
    assert Dataset.from_arrays(X.astype({"whole": float, "word": "category"}), y).fingerprint == fingerprint


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), row=st.integers(0, 29))
def test_fingerprint_sees_a_changed_cell(seed, row):
    X, y = table_of(seed)
    fingerprint = Dataset.from_arrays(X, y).fingerprint
    number, word, target = X.copy(), X.copy(), y.copy()
    number.loc[row, "number"] = 77.0
    word.loc[row, "word"] = "new"
    target[row] = (target[row] + 1) % 3
    swapped = X.assign(number=np.roll(X["number"].to_numpy(), 1))  # the same values in other rows
    for frame, values in ((number, y), (word, y), (X, target), (swapped, y), (X.drop(columns="flag"), y)):
        assert Dataset.from_arrays(frame, values).fingerprint != fingerprint
    assert len(fingerprint) == 32


def test_a_target_is_not_a_feature():
    X, y = pd.DataFrame({"a": np.arange(10.0)}), np.arange(10.0)[::-1] + 0.5
    turned = Dataset.from_arrays(pd.DataFrame({"a": y}), X["a"], task="regression")
    assert Dataset.from_arrays(X, y, task="regression").fingerprint != turned.fingerprint


def test_take_keeps_the_fingerprint_and_the_row_data():
    X, y = table_of(0)
    dataset = Dataset.from_arrays(X, y, groups=np.arange(30), sample_weight=np.arange(30) + 1.0)
    part = dataset.take(np.array([4, 2, 9]))
    assert part.fingerprint == dataset.fingerprint == part.take(np.arange(3)).fingerprint
    assert part.groups.tolist() == [4, 2, 9]
    assert part.sample_weight.tolist() == [5.0, 3.0, 10.0]
    assert part.X["number"].equals(X["number"].iloc[[4, 2, 9]].reset_index(drop=True))
    assert part.y.tolist() == y[[4, 2, 9]].tolist()


@settings(max_examples=40, deadline=None)
@given(
    shares=st.lists(st.integers(1, 200), min_size=2, max_size=12),
    seed=st.integers(0, 100),
    fraction=st.floats(0.02, 0.9),
)
def test_samples_keep_every_class_and_their_size(shares, seed, fraction):
    y = np.repeat(np.arange(len(shares)), shares)
    n_rows = min(len(y), max(2 * len(shares), int(fraction * len(y))))
    rows = stratified_sample(y, TaskType.MULTICLASS, n_rows, seed)
    assert len(rows) == len(set(rows)) == n_rows
    assert set(y[rows]) == set(range(len(shares)))
    np.testing.assert_array_equal(rows, stratified_sample(y, TaskType.MULTICLASS, n_rows, seed))


def test_a_sample_smaller_than_the_number_of_classes():
    assert len(stratified_sample(np.repeat(np.arange(50), 4), TaskType.MULTICLASS, 30, 0)) == 30


def test_samples_have_the_shares_of_the_whole():
    y = np.repeat([0, 1, 2], [7_000, 2_500, 500])
    for seed in range(5):
        rows = stratified_sample(y, TaskType.MULTICLASS, 1_000, seed)
        assert np.bincount(y[rows]) == pytest.approx([700, 250, 50], abs=6)
    values = np.random.default_rng(0).lognormal(size=10_000)
    rows = stratified_sample(values, TaskType.REGRESSION, 500, 0)
    deciles = np.searchsorted(np.quantile(values, np.linspace(0.1, 0.9, 9)), values[rows])
    assert np.bincount(deciles) == pytest.approx(50, abs=1)


def test_subsample_by_seed():
    X, y = table_of(1)
    dataset = Dataset.from_arrays(X, y)
    assert dataset.subsample(30) is dataset
    parts = [dataset.subsample(12, seed) for seed in (0, 0, 1)]
    assert parts[0].X.equals(parts[1].X)
    assert not parts[0].X.equals(parts[2].X)
    assert {part.fingerprint for part in parts} == {dataset.fingerprint}
