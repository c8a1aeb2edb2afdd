"""Splits: how many by size, groups whole, time in order, rare classes kept, splitters of one's own."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold, ShuffleSplit

from autometa.data import ColumnKind, Dataset, TaskType
from autometa.exceptions import DataError
from autometa.splitting import make_splits


def dataset_of(y, **row_data):
    y = np.asarray(y)
    classes = np.unique(y) if y.dtype.kind == "i" else None
    task = TaskType.REGRESSION if classes is None else TaskType.BINARY if len(classes) == 2 else TaskType.MULTICLASS
    frame = pd.DataFrame({"row": np.arange(len(y))})
    row_data = {name: np.asarray(values) for name, values in row_data.items()}
    return Dataset(frame, y, task, classes, {"row": ColumnKind.NUMERIC}, **row_data)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(
    ("n_rows", "n_splits", "test_share"),
    [(100, 10, 0.2), (499, 10, 0.2), (500, 5, 0.2), (1_500, 5, 0.2), (1_501, 3, 1 / 3), (30_000, 3, 1 / 3),
     (30_001, 1, 0.2)],
)  # fmt: skip
def test_number_of_splits_by_size(n_rows, n_splits, test_share, task):
    dataset = dataset_of(np.arange(n_rows) % 2 if task == "classification" else np.arange(n_rows) / 3)
    splits = make_splits(dataset)
    assert len(splits) == n_splits
    for train, test in splits:
        assert len(test) == pytest.approx(test_share * n_rows, abs=1)
        assert not set(train) & set(test)
        assert len(train) + len(test) == n_rows


@settings(max_examples=20, deadline=None)
@given(n_rows=st.integers(3, 300), n_classes=st.integers(0, 5), seed=st.integers(0, 100))
def test_small_tables_are_held_out_once_a_repeat(n_rows, n_classes, seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n_rows) if n_classes < 2 else np.sort(np.arange(n_rows) % n_classes)
    if n_rows < 3 * n_classes:
        return
    splits = make_splits(dataset_of(y), seed)
    held = np.bincount(np.concatenate([test for _, test in splits]), minlength=n_rows)
    assert (held == len(splits) // min(5, n_rows)).all()
    again = make_splits(dataset_of(y), seed)
    assert all(
        np.array_equal(a, b) for one, two in zip(splits, again, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_another_seed_cuts_elsewhere():
    dataset = dataset_of(np.arange(200) % 2)
    assert not np.array_equal(make_splits(dataset, 0)[0][1], make_splits(dataset, 1)[0][1])


def test_classes_keep_their_shares():
    y = np.repeat([0, 1, 2], [600, 300, 60])
    for _, test in make_splits(dataset_of(y)):
        assert np.bincount(y[test]) == pytest.approx([120, 60, 12], abs=1)


@pytest.mark.parametrize("rare", [1, 2, 3])
def test_a_class_with_fewer_rows_than_folds_is_no_error(rare, recwarn):
    y = np.repeat([0, 1, 2], [60, 40, rare])
    splits = make_splits(dataset_of(y))
    assert len(splits) == 10
    assert not recwarn.list
    for train, _ in splits:
        assert {0, 1} <= set(y[train])


@settings(max_examples=20, deadline=None)
@given(n_groups=st.integers(2, 12), n_rows=st.integers(30, 200), seed=st.integers(0, 50), numeric=st.booleans())
def test_groups_are_never_split(n_groups, n_rows, seed, numeric):
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, n_rows - n_groups)])
    y = rng.normal(size=n_rows) if numeric else rng.permutation(np.arange(n_rows) % 2)
    for train, test in make_splits(dataset_of(y, groups=[f"farm {g}" for g in groups]), seed):
        assert not set(groups[train]) & set(groups[test])
        assert len(train)
        assert len(test)


def test_every_group_is_tested():
    groups = np.repeat(np.arange(20), 30)
    splits = make_splits(dataset_of(np.arange(600) % 2, groups=groups))
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(600))


@settings(max_examples=20, deadline=None)
@given(n_rows=st.integers(6, 300), seed=st.integers(0, 50), numeric=st.booleans())
def test_test_rows_are_never_earlier_than_training_rows(n_rows, seed, numeric):
    rng = np.random.default_rng(seed)
    time = rng.permutation(n_rows)
    y = rng.normal(size=n_rows) if numeric else time % 2
    splits = make_splits(dataset_of(y, time=time), seed)
    for train, test in splits:
        assert time[train].max() < time[test].min()
    assert time[splits[-1][1]].max() == n_rows - 1


def test_time_may_be_dates_or_text():
    days = pd.date_range("2024-01-01", periods=60).to_numpy()[::-1]
    for time in (days, np.array([str(day) for day in days])):
        train, test = make_splits(dataset_of(np.arange(60) / 7, time=time))[0]
        assert train.min() > test.max()  # the first row is the latest


def test_splits_that_train_on_one_class_are_left_out():
    y = (np.arange(60) >= 30).astype(int)
    splits = make_splits(dataset_of(y, time=np.arange(60)))
    assert 0 < len(splits) < 5
    assert all(set(y[train]) == {0, 1} for train, _ in splits)


def test_errors():
    with pytest.raises(DataError, match=r"needs at least two groups\. Got one"):
        make_splits(dataset_of([0, 1] * 10, groups=["a"] * 20))
    with pytest.raises(DataError, match="No split of these rows leaves two classes"):
        make_splits(dataset_of(np.repeat([0, 1], 10), groups=np.repeat([0, 1], 10)))


def test_a_splitter_replaces_the_rule():
    dataset = dataset_of(np.arange(100) / 3)
    splits = make_splits(dataset, splitter=KFold(4))
    assert [test.tolist() for _, test in splits] == [list(range(i, i + 25)) for i in (0, 25, 50, 75)]
    assert len(make_splits(dataset, splitter=ShuffleSplit(2, test_size=0.1, random_state=0))[1][1]) == 10


def test_a_splitter_is_given_the_groups():
    class First:
        def split(self, X, y, groups):
            yield np.flatnonzero(groups != groups[0]), np.flatnonzero(groups == groups[0])

    ((train, test),) = make_splits(dataset_of(np.arange(9) / 2, groups=list("aabbbcccc")), splitter=First())
    assert test.tolist() == [0, 1]
    assert len(train) == 7
