"""TableEncoder: layouts with known values, any table in, finite matrices out, and state that is only data."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from autometa.data import ColumnKind, Dataset, infer_kinds
from autometa.exceptions import ArtefactError, DataError
from autometa.preprocessing import TableEncoder, encode_dataset, n_leading_categories
from autometa.preprocessing.columns import category_key
from autometa.preprocessing.text import TextColumn

MATRICES = ("tree", "linear", "net")
NAN = float("nan")


def small_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [20.0, NAN, 40.0, 30.0],
            "city": ["Rome", "Oslo", "Rome", None],
            "member": [True, False, True, True],
            "same": ["x"] * 4,
        }
    )


def mixed_table(n_rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """Every kind of column, with missing values in each."""
    rng = np.random.default_rng(seed)
    words = np.array(["pump", "valve", "motor", "screw", "spring", "housing"])
    table = pd.DataFrame(
        {
            "price": rng.lognormal(size=n_rows),
            "count": rng.integers(0, 9, n_rows),
            "colour": rng.choice(["red", "green", "blue"], n_rows),
            "size": pd.Categorical(rng.choice(["S", "M", "L"], n_rows)),
            "stock": rng.random(n_rows) < 0.5,
            "bought": pd.Timestamp("2020-01-31 10:00") + pd.to_timedelta(rng.integers(0, 9000, n_rows), unit="h"),
            "note": [f"{' '.join(rng.choice(words, 4))} {i}" for i in range(n_rows)],
            "rating": pd.array(rng.integers(1, 6, n_rows), dtype="Int64"),
        }
    )
    for position in range(table.shape[1]):
        if table.columns[position] not in {"stock", "count"}:
            table.iloc[rng.integers(0, n_rows, 3), position] = None
    return table


class TestLayouts:
    def test_tree(self) -> None:
        encoder = TableEncoder("tree").fit(small_table())
        expected = [[0, 20, 1], [1, NAN, 0], [0, 40, 1], [NAN, 30, 1]]
        np.testing.assert_array_equal(encoder.transform(small_table()), np.array(expected, dtype=np.float32))
        assert encoder.get_feature_names_out().tolist() == ["city", "age", "member"]

    def test_linear(self) -> None:
        encoder = TableEncoder("linear")
        matrix = encoder.fit_transform(small_table())
        names = encoder.get_feature_names_out().tolist()
        assert names == ["city=Rome", "city=Oslo", "city=(missing)", "age", "member", "age is missing"]
        np.testing.assert_array_equal(matrix[:, :3], [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
        np.testing.assert_array_equal(matrix[:, 5], [0, 1, 0, 0])
        assert matrix[1, 3] == matrix[3, 3]  # the missing age is the median

    def test_net(self) -> None:
        matrix = TableEncoder("net").fit_transform(small_table())
        np.testing.assert_array_equal(matrix[:, 0], [1, 2, 1, 0])
        z = np.array([-1.0, 0.0, 1.0, 0.0])  # median 30, interquartile range 10
        np.testing.assert_allclose(matrix[:, 1], z / np.sqrt(1 + (z / 3) ** 2), rtol=1e-6)

    def test_linear_numbers_have_mean_zero_and_standard_deviation_one(self) -> None:
        rng = np.random.default_rng(0)
        table = pd.DataFrame({"normal": rng.normal(5, 3, 500), "heavy": np.exp(rng.normal(0, 4, 500))})
        matrix = TableEncoder("linear").fit_transform(table)
        np.testing.assert_allclose(matrix.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(matrix.std(axis=0), 1, atol=1e-5)
        assert np.abs(matrix).max() <= 10.001

    def test_one_hot_is_capped_and_unknown_values_are_infrequent(self) -> None:
        values = [f"v{i % 40:02d}" for i in range(2000)] + ["rare"]
        table = pd.DataFrame({"a": values})
        encoder = TableEncoder("linear").fit(table)
        matrix = encoder.transform(table)
        assert matrix.shape == (2001, 31)
        assert (matrix.sum(axis=1) == 1).all()
        assert encoder.transform(pd.DataFrame({"a": ["never seen"]}))[0, 30] == 1
        assert encoder.transform(pd.DataFrame({"a": [None]})).sum() == 0

    @pytest.mark.parametrize(("matrix", "unknown", "missing"), [("tree", -1.0, NAN), ("net", 0.0, 0.0)])
    def test_unknown_and_missing_codes(self, matrix: Any, unknown: float, missing: float) -> None:
        encoder = TableEncoder(matrix).fit(pd.DataFrame({"a": ["x", "y", "y"]}))
        codes = encoder.transform(pd.DataFrame({"a": ["new", None]}))[:, 0]
        np.testing.assert_array_equal(codes, [unknown, missing])

    def test_codes_fit_one_byte(self) -> None:
        table = pd.DataFrame({"a": [f"level {i}" for i in range(400)]})
        encoder = TableEncoder("tree", {"a": ColumnKind.CATEGORICAL}).fit(table)
        assert encoder.transform(table).max() == 253

    @pytest.mark.parametrize("matrix", MATRICES)
    def test_no_usable_column_gives_one_of_zeros(self, matrix: Any) -> None:
        table = pd.DataFrame({"a": [1, 1, 1], "b": [None] * 3})
        encoder = TableEncoder(matrix).fit(table)
        np.testing.assert_array_equal(encoder.transform(table), np.zeros((3, 1)))
        assert len(encoder.get_feature_names_out()) == 1

    @pytest.mark.parametrize("matrix", MATRICES)
    def test_leading_categories_follow_from_the_kinds(self, matrix: Any) -> None:
        table = mixed_table()
        kinds = infer_kinds(table)
        encoder = TableEncoder(matrix, kinds).fit(table)
        assert encoder.n_categorical_ == n_leading_categories(kinds, matrix) == (0 if matrix == "linear" else 2)
        codes = encoder.transform(table)[:, : encoder.n_categorical_]
        assert np.isin(codes[~np.isnan(codes)], [-1, 0, 1, 2, 3]).all()

    def test_infinities_and_huge_numbers(self) -> None:
        table = pd.DataFrame({"a": [1.0, 2.0, np.inf, -np.inf, 1e300, 3.0]})
        tree = TableEncoder("tree").fit_transform(table)[:, 0]
        assert np.isfinite(tree).all()
        assert tree[2] == tree[4] == np.finfo(np.float32).max
        for matrix in ("linear", "net"):
            values = TableEncoder(matrix).fit_transform(table)[:, 0]
            assert np.isfinite(values).all()
            assert np.argmax(values) in {2, 4}

    def test_large_offsets_survive_float32(self) -> None:
        seconds = 1.7e9 + np.arange(50.0)
        for matrix in MATRICES:
            values = TableEncoder(matrix).fit_transform(pd.DataFrame({"time": seconds}))[:, 0]
            assert len(np.unique(values)) == 50

    def test_constant_numbers_stay_zero(self) -> None:
        kinds = {"a": ColumnKind.NUMERIC, "b": ColumnKind.NUMERIC}
        table = pd.DataFrame({"a": [0.1] * 30, "b": [NAN] * 30})
        for matrix in ("linear", "net"):
            encoder = TableEncoder(matrix, kinds).fit(table)
            assert not encoder.transform(pd.DataFrame({"a": [7.0], "b": [7.0]}))[:, :2].any()


class TestDates:
    def test_parts_are_right(self) -> None:
        stamps = ["2024-02-29 06:30", "1969-12-31 23:00", "2021-07-05 00:00"]
        table = pd.DataFrame({"when": pd.to_datetime(stamps)})
        encoder = TableEncoder("tree")
        matrix = pd.DataFrame(encoder.fit_transform(table), columns=encoder.get_feature_names_out())
        assert matrix["when year"].tolist() == [2024, 1969, 2021]
        assert matrix["when month"].tolist() == [2, 12, 7]
        assert matrix["when weekday"].tolist() == [t.weekday() for t in table["when"]]
        assert matrix["when hour"].tolist() == [6.5, 23.0, 0.0]
        days = table["when"].diff() / pd.Timedelta("1D")
        np.testing.assert_allclose(matrix["when days"].diff()[1:], days[1:], rtol=1e-6)

    def test_only_parts_that_vary(self) -> None:
        table = pd.DataFrame({"day": pd.date_range("2021-03-01", periods=20)})
        assert TableEncoder("tree").fit(table).get_feature_names_out().tolist() == ["day days", "day weekday"]

    def test_all_ways_to_write_a_date_are_one(self) -> None:
        stamps = pd.date_range("2021-01-01", periods=30, freq="31h")
        encoder = TableEncoder("tree").fit(pd.DataFrame({"a": stamps}))
        expected = encoder.transform(pd.DataFrame({"a": stamps}))
        for values in (
            stamps.tz_localize("UTC").tz_convert("Asia/Tokyo"),
            stamps.astype(str),
            stamps.to_series().astype(object).tolist(),
            stamps.astype("datetime64[s]"),
            pd.arrays.PeriodArray(stamps.to_period("h")),
        ):
            np.testing.assert_array_equal(encoder.transform(pd.DataFrame({"a": values})), expected)

    def test_date_objects_and_missing(self) -> None:
        table = pd.DataFrame({"a": [date(2020, 1, 1), None, date(2021, 1, 1)]}, dtype=object)
        encoder = TableEncoder("linear").fit(table)
        assert encoder.get_feature_names_out()[-1] == "a days is missing"
        np.testing.assert_array_equal(encoder.transform(table)[:, -1], [0, 1, 0])

    @pytest.mark.parametrize("value", ["not a date", 17])
    def test_what_is_no_date_is_named(self, value: Any) -> None:
        encoder = TableEncoder("tree").fit(pd.DataFrame({"a": pd.date_range("2020-01-01", periods=5)}))
        with pytest.raises(DataError, match=r"'a' must hold dates\. Got"):
            encoder.transform(pd.DataFrame({"a": [value]}))

    def test_dirt_seen_in_fit_counts_as_missing(self) -> None:
        dates = [f"2020-01-{i % 28 + 1:02d}" for i in range(200)]
        encoder = TableEncoder("tree").fit(pd.DataFrame({"a": [*dates, "unknown"]}))
        assert np.isnan(encoder.transform(pd.DataFrame({"a": ["?"]}))).all()


class TestText:
    def texts(self) -> list[str]:
        rng = np.random.default_rng(3)
        words = ["alpha", "Beta", "gamma-ray", "delta", "ε", "of", "a", "x1", "\tzeta  eta", "ÄÖ"]
        return [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(300)]

    def test_equals_skrub(self) -> None:
        from skrub import StringEncoder

        texts = self.texts()
        column = TextColumn.fit(texts, np.random.RandomState(0))
        seed = int(np.random.RandomState(0).randint(2**31 - 1))
        skrub = StringEncoder(column.components.shape[1], vocabulary=column.grams, random_state=seed)
        expected = skrub.fit_transform(pd.Series(texts, name="a", dtype=str))
        found = column.transform(texts)[:, : expected.shape[1]]
        np.testing.assert_allclose(found, expected.to_numpy(), atol=2e-5)
        unseen = ["delta ray zz", "", "beta  BETA", "一"]
        expected = skrub.transform(pd.Series(unseen, name="a", dtype=str))
        np.testing.assert_allclose(column.transform(unseen)[:, : expected.shape[1]], expected.to_numpy(), atol=2e-5)

    def test_similar_texts_are_near(self) -> None:
        rng = np.random.default_rng(0)
        tools = [f"hammer drill {i}" for i in rng.integers(0, 10**6, 200)]
        fruit = [f"orange banana {i}" for i in rng.integers(0, 10**6, 200)]
        table = pd.DataFrame({"name": tools + fruit})
        assert infer_kinds(table)["name"] is ColumnKind.TEXT
        encoder = TableEncoder("linear").fit(table)
        tool, other_tool, banana = encoder.transform(pd.DataFrame({"name": ["hammer 7", "Drill 1234", "banana 99"]}))
        assert np.linalg.norm(tool - other_tool) < np.linalg.norm(tool - banana)

    def test_without_words_length_remains(self) -> None:
        table = pd.DataFrame({"a": ["", " ", None, "   "]})
        encoder = TableEncoder("tree", {"a": ColumnKind.TEXT}).fit(table)
        np.testing.assert_allclose(encoder.transform(table)[:, 0], np.log1p([0, 1, 0, 3]), rtol=1e-6)

    def test_skrub_is_imported_for_text_only(self) -> None:
        code = (
            "import sys, pandas as pd; from autometa.preprocessing import TableEncoder;"
            "TableEncoder('net').fit(pd.DataFrame({'a': [1, 2, 3], 'b': ['x', 'y', 'y']}));"
            "print(sorted({'skrub', 'torch', 'optuna'} & set(sys.modules)))"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "[]"


class TestDrift:
    @pytest.mark.parametrize(
        "values",
        [
            ["1", " 2.5 ", ""],
            [1, 2.5, pd.NA],
            [Decimal(1), Decimal("2.5"), None],
            pd.array([1, 2.5, None], dtype="Float64"),
            pd.array([1, 2.5, None], dtype="float64[pyarrow]"),
            pd.array(["1", "2.5", None], dtype="string"),
            pd.Categorical([1, 2.5, None]),
            np.array([1, 2.5, NAN], dtype=np.float16),
            [timedelta(seconds=1), timedelta(seconds=2.5), pd.NaT],
        ],
    )
    def test_numbers_however_they_are_kept(self, values: Any) -> None:
        encoder = TableEncoder("tree").fit(pd.DataFrame({"a": [1, 2, 3]}))
        found = encoder.transform(pd.DataFrame({"a": values}))[:, 0]
        np.testing.assert_array_equal(found, np.array([1, 2.5, NAN], dtype=np.float32))

    @pytest.mark.parametrize("values", [[True, False, None], ["true", "False", " "], [1, 0, NAN]])
    def test_booleans_however_they_are_kept(self, values: Any) -> None:
        encoder = TableEncoder("tree").fit(pd.DataFrame({"a": [True, False]}))
        np.testing.assert_array_equal(encoder.transform(pd.DataFrame({"a": values}))[:, 0], [1, 0, NAN])

    @pytest.mark.parametrize("values", [[1, 2, 3], [1.0, 2.0, 3.0], ["1", "2", "3"], ["1.0", "2.0", "3.00"]])
    def test_categories_that_are_numbers(self, values: Any) -> None:
        encoder = TableEncoder("tree", {"a": ColumnKind.CATEGORICAL}).fit(pd.DataFrame({"a": [1, 1, 1, 2, 2, 3]}))
        np.testing.assert_array_equal(encoder.transform(pd.DataFrame({"a": values}))[:, 0], [0, 1, 2])

    def test_category_keys(self) -> None:
        assert [category_key(v) for v in (1, 1.0, "1", "1.0", np.int8(1), np.float32(1), Decimal("1.0"))] == ["1"] * 7
        assert [category_key(v) for v in ("1.50", "1.0.0", "", True, [1], 0.5)] == [
            "1.50", "1.0.0", "", "True", "[1]", "0.5",
        ]  # fmt: skip
        assert all(category_key(v) is None for v in (None, NAN, pd.NA, pd.NaT, np.float64("nan")))

    @pytest.mark.parametrize("n_rows", [1, 2, 30])
    def test_category_dtype_with_other_categories(self, n_rows: int) -> None:
        encoder = TableEncoder("tree").fit(pd.DataFrame({"a": pd.Categorical(["x", "y", "y"])}))
        values = (["new", "x", None] * 10)[:n_rows]
        column = pd.Categorical(values, categories=["new", "unused", "x", "w1", "w2", "w3"])
        expected = ([-1.0, 1.0, NAN] * 10)[:n_rows]
        np.testing.assert_array_equal(encoder.transform(pd.DataFrame({"a": column}))[:, 0], expected)

    def test_texts_where_numbers_were(self) -> None:
        encoder = TableEncoder("linear").fit(pd.DataFrame({"a": [1, 2, 3]}))
        with pytest.raises(DataError, match=r"'a' must hold numbers\. Got 'abc' \(str\) instead"):
            encoder.transform(pd.DataFrame({"a": ["1", "abc"]}))
        with pytest.raises(DataError, match="'a' must hold numbers"):
            encoder.transform(pd.DataFrame({"a": [datetime(2020, 1, 1)]}))

    def test_missing_column_is_named(self) -> None:
        encoder = TableEncoder().fit(small_table())
        with pytest.raises(DataError, match="no column 'age'"):
            encoder.transform(small_table().drop(columns="age"))
        encoder.transform(small_table().drop(columns="same"))  # it was constant, so nothing is lost

    def test_order_and_extra_columns_do_not_matter(self) -> None:
        table = mixed_table()
        encoder = TableEncoder("net").fit(table)
        other = table.assign(extra=[[1]] * len(table))[["extra", *reversed(table.columns)]]
        np.testing.assert_array_equal(encoder.transform(other), encoder.transform(table))

    def test_arrays_are_read_by_position(self) -> None:
        values = np.random.default_rng(0).normal(size=(20, 3))
        encoder = TableEncoder().fit(values)
        expected = encoder.transform(values)
        np.testing.assert_array_equal(encoder.transform(pd.DataFrame(values, columns=list("abc"))), expected)
        named = TableEncoder().fit(pd.DataFrame(values, columns=list("abc")))
        np.testing.assert_array_equal(named.transform(values), expected)
        with pytest.raises(DataError, match="has 2 features, but TableEncoder is expecting 3 features"):
            encoder.transform(values[:, :2])

    def test_unhashable_values(self) -> None:
        table = pd.DataFrame({"a": [[1], [2], [1], {"k": 1}]})
        encoder = TableEncoder("tree").fit(table)
        np.testing.assert_array_equal(encoder.transform(table)[:, 0], [0, 1, 0, 2])

    def test_odd_names(self) -> None:
        names: list[Any] = [1, "1", "a,b[0]<1>", "名", ("t", 2), pd.Timestamp("2020-01-01"), 2.5, None]
        table = pd.DataFrame(np.random.default_rng(0).normal(size=(9, len(names))))
        table.columns = pd.Index(names, dtype=object)
        encoder = TableEncoder("tree").fit(table)
        found = encoder.get_feature_names_out().tolist()
        assert found[:3] == ["1", "1 (2)", "a,b[0]<1>"]
        assert len(set(found)) == len(names)
        back = TableEncoder.from_state(encoder.to_state())
        np.testing.assert_array_equal(back.transform(table[names[::-1]]), encoder.transform(table))

    def test_polars(self) -> None:
        polars = pytest.importorskip("polars")
        table = small_table()
        encoder = TableEncoder("tree").fit(polars.from_pandas(table))
        np.testing.assert_array_equal(encoder.transform(table), TableEncoder("tree").fit_transform(table))


class TestScikitLearn:
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("matrix", MATRICES)
    def test_estimator_checks(self, matrix: Any) -> None:
        results = check_estimator(TableEncoder(matrix), on_fail=None, on_skip=None)
        assert [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"] == []

    @pytest.mark.parametrize("matrix", MATRICES)
    def test_fitting_twice_equals_once_and_input_is_untouched(self, matrix: Any) -> None:
        table = mixed_table()
        before = table.copy(deep=True)
        once = TableEncoder(matrix).fit(table)
        twice = TableEncoder(matrix).fit(mixed_table(30, seed=9)).fit(table)
        expected = once.transform(table)
        np.testing.assert_array_equal(twice.transform(table), expected)
        np.testing.assert_array_equal(once.transform(table), expected)
        pd.testing.assert_frame_equal(table, before)
        assert expected.dtype == np.float32
        assert expected.flags.c_contiguous

    def test_clone_and_parameters(self) -> None:
        kinds = infer_kinds(small_table())
        encoder = TableEncoder("net", kinds, random_state=3).fit(small_table())
        copy = clone(encoder)
        assert copy.get_params() == {"matrix": "net", "kinds": kinds, "random_state": 3}
        with pytest.raises(NotFittedError):
            copy.transform(small_table())

    def test_fitted_attributes(self) -> None:
        encoder = TableEncoder().fit(small_table())
        assert encoder.n_features_in_ == 4
        assert encoder.feature_names_in_.tolist() == ["age", "city", "member", "same"]
        assert encoder.kinds_["same"] is ColumnKind.EMPTY
        assert not hasattr(encoder.fit(np.eye(3)), "feature_names_in_")

    def test_set_output(self) -> None:
        encoder = TableEncoder("tree").set_output(transform="pandas")
        found = encoder.fit_transform(small_table())
        assert found.columns.tolist() == ["city", "age", "member"]

    def test_errors_of_fit(self) -> None:
        with pytest.raises(ValueError, match="matrix must be one of tree, linear, net"):
            TableEncoder("dense").fit(small_table())  # type: ignore[arg-type]
        with pytest.raises(DataError, match="0 sample"):
            TableEncoder().fit(small_table().iloc[:0])
        with pytest.raises(DataError, match="'age' has no kind"):
            TableEncoder(kinds={"city": ColumnKind.CATEGORICAL}).fit(small_table())
        assert TableEncoder().fit(small_table()).transform(small_table().iloc[:0]).shape == (0, 6)

    def test_encode_dataset(self) -> None:
        table = mixed_table()
        dataset = Dataset.from_arrays(table, np.arange(len(table)) % 2)
        encoder, matrix = encode_dataset(dataset, "tree")
        assert encoder.kinds_ == dataset.kinds
        np.testing.assert_array_equal(matrix, encoder.transform(table))


class TestState:
    @pytest.mark.parametrize("matrix", MATRICES)
    def test_round_trip_is_exact(self, matrix: Any) -> None:
        table, other = mixed_table(), mixed_table(40, seed=1)
        encoder = TableEncoder(matrix, random_state=4).fit(table)
        text, arrays = _split(encoder.to_state())
        back = TableEncoder.from_state(_join(json.loads(text), arrays))
        for rows in (table, other, other.iloc[[7]]):
            np.testing.assert_array_equal(back.transform(rows), encoder.transform(rows))
        assert back.get_feature_names_out().tolist() == encoder.get_feature_names_out().tolist()
        assert back.get_params() == encoder.get_params()
        assert back.n_categorical_ == encoder.n_categorical_
        assert _split(back.to_state())[0] == text

    def test_other_versions_are_refused(self) -> None:
        state = TableEncoder().fit(small_table()).to_state()
        with pytest.raises(ArtefactError, match="version"):
            TableEncoder.from_state({**state, "version": 99})

    def test_survives_a_worker(self) -> None:
        table = mixed_table()
        encoder = TableEncoder("linear").fit(table)
        back = pickle.loads(pickle.dumps(encoder))
        np.testing.assert_array_equal(back.transform(table), encoder.transform(table))


def _split(state: Any) -> tuple[str, list[Any]]:
    """State as JSON with the arrays apart, as a file format would keep it."""
    arrays: list[Any] = []

    def default(value: Any) -> dict[str, int]:
        assert isinstance(value, np.ndarray)
        assert value.dtype != object
        arrays.append(value)
        return {"__array__": len(arrays) - 1}

    return json.dumps(state, default=default, allow_nan=False), arrays


def _join(value: Any, arrays: list[Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__array__"}:
            return arrays[value["__array__"]]
        return {key: _join(part, arrays) for key, part in value.items()}
    return [_join(part, arrays) for part in value] if isinstance(value, list) else value


N_ROWS = 12
CELLS = {
    "float": st.floats(width=64) | st.none(),
    "int": st.integers(-(2**62), 2**62),
    "big int": st.integers(-(10**400), 10**400),
    "string": st.text(max_size=6) | st.none(),
    "letter": st.sampled_from(["a", "b", "1", "1.0", "", None]),
    "bool": st.booleans() | st.none(),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False) | st.none(),
    "datetime": st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)) | st.none(),
    "delta": st.timedeltas(timedelta(days=-9999), timedelta(days=9999)),
    "mixed": st.one_of(st.integers(), st.text(max_size=3), st.booleans(), st.floats(), st.lists(st.integers())),
}


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    columns = {}
    for number, label in enumerate(draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))):
        values = draw(st.lists(CELLS[label], min_size=N_ROWS, max_size=N_ROWS))
        column = pd.Series(values, dtype=object)
        if label in {"letter", "bool"} and draw(st.booleans()):
            column = column.astype("category")
        elif draw(st.booleans()):
            column = column.infer_objects()
        columns[f"{label} {number}"] = column
    return pd.DataFrame(columns)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(table=tables(), matrix=st.sampled_from(MATRICES))
def test_any_table_gives_a_matrix(table: pd.DataFrame, matrix: Any) -> None:
    encoder = TableEncoder(matrix)
    found = encoder.fit_transform(table)
    assert found.shape == (N_ROWS, len(encoder.get_feature_names_out()))
    assert found.dtype == np.float32
    assert not np.isinf(found).any()
    if matrix != "tree":
        assert not np.isnan(found).any()
    np.testing.assert_array_equal(encoder.transform(table), found)
    np.testing.assert_array_equal(encoder.transform(table.iloc[[5]])[0], found[5])
    back = TableEncoder.from_state(encoder.to_state())
    np.testing.assert_array_equal(back.transform(table), found)
