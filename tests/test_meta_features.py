"""Meta-features: values worked out by hand, agreement with pymfe, and the promises of ``extract``."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymfe.mfe import MFE

from autometa.data import ColumnKind, Dataset, TaskType
from autometa.meta_features import (
    FEATURE_GROUPS,
    FEATURE_NAMES,
    constant_scores,
    describe,
    describe_all,
    extract,
)
from autometa.meta_features.distribution import bin_columns, bin_target, mutual_information
from autometa.meta_features.landmarkers import build_arena, error_skill, skill
from autometa.meta_features.sample import MAX_COLUMNS, draw_sample, standardise

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
CHEAP = [group for group in FEATURE_GROUPS if group != "landmarkers"]


def dataset(columns: Any, y: Any, **options: Any) -> Dataset:
    return Dataset.from_arrays(pd.DataFrame(columns), np.asarray(y), **options)


def values(data: Dataset, *groups: str) -> dict[str, float]:
    return dict(extract(data, groups=groups or None).values)


def noisy_table(n_rows: int = 300, n_columns: int = 6, seed: int = 0, task: str = "binary") -> Dataset:
    """Numbers, one category, some missing cells; the target leans on the first two columns."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.standard_normal((n_rows, n_columns)), columns=[f"c{j}" for j in range(n_columns)])
    signal = frame["c0"] - frame["c1"] + 0.3 * rng.standard_normal(n_rows)
    frame["colour"] = rng.choice(["red", "green", "blue"], n_rows)
    frame.loc[rng.random(n_rows) < 0.1, "c2"] = np.nan
    y = {"binary": signal > 0, "multiclass": np.digitize(signal, [-1, 1]), "regression": signal}[task]
    return Dataset.from_arrays(frame, y, task=task)


def same(a: Any, b: Any) -> bool:
    """Equal to 1e-9, NaN where NaN."""
    return bool(np.allclose(a.vector, b.vector, rtol=1e-9, atol=1e-9, equal_nan=True))


# --- values by hand -------------------------------------------------------------------------------------------------


def test_simple_by_hand() -> None:
    data = dataset(
        {
            "count": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            "float": np.linspace(0.5, 1.3, 10),
            "constant": [1] * 10,
            "colour": list("aabbccddaa"),
            "flag": [True, False] * 5,
        },
        [0, 1] * 5,
    )
    found = values(data, "simple")
    assert found["log_rows"] == 1
    assert found["log_columns"] == pytest.approx(np.log10(5))
    assert found["log_columns_per_row"] == pytest.approx(np.log10(0.5))
    assert found["numeric_share"] == 0.4
    assert found["categorical_share"] == 0.4
    assert found["empty_share"] == 0.2
    assert found["binary_share"] == 0.25  # the flag among four columns in use
    assert found["whole_number_share"] == 0.5
    assert found["log_levels_mean"] == found["log_levels_max"] == 2
    assert np.isnan(found["class_entropy"])  # not asked for


def test_kinds_of_dates_and_text() -> None:
    words = [f"many words in this long sentence {i}" for i in range(40)]
    data = dataset({"when": pd.date_range("2020-01-01", periods=40), "what": words}, np.arange(40.0))
    found = values(data, "simple")
    assert (found["datetime_share"], found["text_share"], found["numeric_share"]) == (0.5, 0.5, 0)


def test_missingness_by_hand() -> None:
    data = dataset({"a": [1, np.nan, 3, np.nan], "b": [1.0, 2, 3, np.inf], "c": [4.0, 3, 2, 1]}, [0, 1, 0, 1])
    found = values(data, "missingness")
    assert found["missing_share"] == 3 / 12
    assert found["missing_columns_share"] == pytest.approx(2 / 3)
    assert found["missing_rows_share"] == 0.5
    assert found["missing_share_max"] == 0.5
    assert found["missing_target_correlation"] == pytest.approx(1.0)  # "a" is missing exactly in class 1
    assert values(noisy_table().take(np.arange(3)), "missingness")["missing_target_correlation"] <= 1


def test_target_of_classes_by_hand() -> None:
    found = values(dataset({"a": range(8)}, list("aaaabbcd")), "target")
    assert found["target_is_continuous"] == 0
    assert found["log_classes"] == 2
    assert found["class_entropy"] == pytest.approx(1.75 / 2)
    assert found["class_share_max"] == 0.5
    assert found["class_share_min"] == 0.5  # 1/8 times 4 classes
    assert found["log_smallest_class_rows"] == pytest.approx(np.log10(2))
    assert found["constant_log_loss"] == pytest.approx(1.75 * np.log(2))
    assert np.isnan(found["target_skewness"])
    assert np.isnan(found["constant_log_rmse"])


def test_target_of_regression_by_hand() -> None:
    found = values(dataset({"a": range(5)}, [0.0, 0, 0, 0, 50], task="regression"), "target")
    assert found["target_is_continuous"] == 1
    assert found["constant_log_rmse"] == pytest.approx(np.log10(20))
    assert found["constant_mae_per_rmse"] == pytest.approx(10 / 20)
    assert found["target_skewness"] == pytest.approx(np.log1p(1.5))
    assert found["target_kurtosis"] == pytest.approx(np.log(3.25))
    assert found["target_distinct_share"] == 0.4
    assert found["target_mode_share"] == 0.8
    assert found["target_outlier_share"] == 0.2
    assert found["target_nonnegative"] == 1
    assert np.isnan(found["log_classes"])


def test_statistics_by_hand() -> None:
    data = dataset({"a": [0.0, 0, 0, 0, 50], "b": [-2.0, -1, 0, 1, 2], "c": [1, np.nan, 1, 2, 2]}, [0, 0, 0, 1, 1])
    found = values(data, "statistical")
    assert found["skewness_abs_mean"] == pytest.approx(np.log1p(1.5) / 3)
    assert found["skewness_abs_max"] == pytest.approx(np.log1p(1.5))
    assert found["kurtosis_mean"] == pytest.approx(np.mean(np.log([3.25, 1.7, 1.0])))
    assert found["outlier_share"] == pytest.approx(1 / 14)
    assert found["zero_share"] == pytest.approx(5 / 14)
    assert found["normal_share"] == 0
    assert found["distinct_share_mean"] == pytest.approx(np.log10([2 / 5, 1, 2 / 5]).mean())
    spreads = [20, np.sqrt(2), 0.5]
    assert found["scale_spread"] == pytest.approx(np.log10(spreads).std())
    assert found["variation_mean"] == pytest.approx(np.mean([np.log10(2), 3, np.log10(0.5 / 1.5)]))
    assert found["tail_weight_mean"] == pytest.approx(np.log10([np.sqrt(2) / 2, 0.5]).mean())


def test_information_by_hand() -> None:
    copy, noise = ["u", "v"] * 200, ["u", "u", "v", "v"] * 100
    found = values(dataset({"copy": copy, "noise": noise}, [0, 1] * 200), "information")
    bias = 1 / 800 / np.log(2)
    assert found["mutual_information_max"] == pytest.approx(1 - bias)
    assert found["mutual_information_mean"] == pytest.approx((1 - bias) / 2)
    assert found["informative_share"] == 0.5
    assert found["mutual_information_concentration"] == pytest.approx(0.5)
    assert found["log_equivalent_columns"] == pytest.approx(-np.log10((1 - bias) / 2))
    assert found["column_entropy_mean"] == pytest.approx(1 / 3)  # one bit of three
    assert found["categorical_information_share"] == 1
    assert np.isnan(found["nonmonotone_information"])  # no ordered column


def test_information_of_noise_is_none_and_of_a_parabola_is_not_linear() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 2_000)
    noise = values(dataset({"x": x}, rng.standard_normal(2_000)), "information", "redundancy")
    parabola = values(dataset({"x": x}, x**2), "information", "redundancy")
    line = values(dataset({"x": x}, x), "information", "redundancy")
    assert noise["mutual_information_max"] < 0.01
    assert parabola["target_correlation_max"] < 0.1
    assert parabola["nonmonotone_information"] > 0.7 > 0.1 > line["nonmonotone_information"]


def test_redundancy_by_hand() -> None:
    a, b = np.array([-1.0, -1, 1, 1] * 5), np.array([-1.0, 1, -1, 1] * 5)
    found = values(dataset({"a": a, "twin": 3 * a + 1, "b": b}, a + 0.5 * b), "redundancy")
    assert found["correlation_abs_mean"] == pytest.approx(1 / 3)
    assert found["correlation_abs_max"] == pytest.approx(1)
    assert found["correlated_pairs_share"] == pytest.approx(1 / 3)
    assert found["first_component_share"] == pytest.approx(2 / 3)
    assert found["components_for_95"] == pytest.approx(2 / 3)
    assert found["effective_rank"] == pytest.approx(1 / (4 / 9 + 1 / 9) / 3)
    assert found["target_correlation_max"] == pytest.approx(1 / np.sqrt(1.25))
    assert found["target_correlation_mean"] == pytest.approx((2 + 0.5) / 3 / np.sqrt(1.25))


def test_structure_by_hand() -> None:
    y = np.array([0.0, 0, 2, 2, 4, 4])
    data = dataset(
        {"a": [1, 1, 2, 3, 4, 5]}, y, groups=list("ppqqrr"), time=[6, 5, 4, 3, 2, 1], sample_weight=[1, 1, 1, 1, 1, 3],
        task="regression",
    )  # fmt: skip
    found = values(data, "structure")
    assert found["has_groups"] == found["has_time"] == 1
    assert found["log_groups_per_row"] == pytest.approx(np.log10(0.5))
    assert found["largest_group_share"] == pytest.approx(1 / 3)
    assert found["group_target_share"] == pytest.approx(1)
    assert found["time_target_trend"] == pytest.approx(12 / np.sqrt(17.5 * 12) * np.sqrt(16 / 12), rel=0.05)
    assert found["time_target_autocorrelation"] == pytest.approx(8 / 16)
    assert found["duplicate_share"] == pytest.approx(1 / 6)
    assert found["duplicate_conflict_share"] == 0
    assert found["effective_row_share"] == pytest.approx(64 / (6 * 14))


def test_structure_of_classes_by_hand() -> None:
    data = dataset({"a": [1, 1, 2, 2]}, [0, 1, 0, 0], groups=[1, 1, 2, 2])
    found = values(data, "structure")
    assert found["group_target_share"] == pytest.approx(1 - (0.25 / 0.375) * 3 / 2)
    assert found["duplicate_share"] == 0.5
    assert found["duplicate_conflict_share"] == 0.5
    plain = values(dataset({"a": [1, 2, 3, 4]}, [0, 1, 0, 1]), "structure")
    assert np.isnan(plain["group_target_share"])
    assert np.isnan(plain["time_target_trend"])
    assert plain["effective_row_share"] == 1


def test_groups_that_say_nothing_share_no_target() -> None:
    rng = np.random.default_rng(3)
    data = noisy_table(4_000)
    grouped = Dataset.from_arrays(data.X, data.y, groups=rng.integers(0, 1_000, 4_000))
    assert abs(values(grouped, "structure")["group_target_share"]) < 0.05


def test_skills_by_hand() -> None:
    truth = np.array([[0.0], [0], [1], [1]])
    assert skill(truth, np.array([[0.1], [0.4], [0.35], [0.8]]), True) == pytest.approx(2 * 0.75 - 1)
    assert skill(truth, np.zeros((4, 1)), True) == 0
    assert np.isnan(skill(truth[:2], truth[:2], True))
    assert skill(truth, np.full((4, 1), 0.5), False) == 0
    assert skill(truth, truth, False) == skill(truth, truth, True) == 1
    assert skill(truth, truth + 100, False) == -1
    assert error_skill(truth, np.array([[0.1], [0.6], [0.6], [0.9]]), True) == pytest.approx(0.5)
    assert error_skill(truth, truth * 0.5 + 0.25, False) == pytest.approx(0.5)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_landmarkers_know_lines_from_noise_and_from_interactions(task: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (600, 4))
    cuts = {"binary": [0.0], "multiclass": [-0.1, 0.1], "regression": None}[task]

    def landmarks(signal: Any) -> dict[str, float]:
        y = signal if cuts is None else np.digitize(signal, cuts)
        return values(Dataset.from_arrays(x, y, task=task), "landmarkers")

    line, checkers = landmarks(x @ [1.0, 1, 0, 0]), landmarks(x[:, 0] * x[:, 1])
    noise = landmarks(rng.standard_normal(600))
    assert line["landmark_linear"] > 0.8 > line["landmark_stump"] > 0.2
    assert line["landmark_best"] >= line["landmark_linear"]
    assert line["nonlinearity"] + 0.2 < checkers["nonlinearity"]
    assert checkers["landmark_linear"] < 0.3
    assert line["interaction"] > 0
    assert noise["landmark_linear"] < 0.15
    assert noise["landmark_best"] < 0.25
    assert task != "regression" or noise["overfitting"] > 0.3  # a full tree learns the noise by heart
    assert all(value <= 1 for name, value in line.items() if name.startswith("landmark"))
    assert line["landmark_spread"] > 0
    assert line["landmark_noise"] > 0


def test_landmarkers_see_many_classes_and_categories() -> None:
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP"), 1_200)
    found = values(dataset({"letter": letters, "noise": rng.standard_normal(1_200)}, letters), "landmarkers")
    assert found["landmark_tree"] > 0.9
    assert found["landmark_trees"] > 0.9


def test_landmarkers_see_small_steps_far_from_zero() -> None:
    seconds = 1_700_000_000 + np.arange(400.0)
    when = pd.to_datetime(seconds, unit="s")
    found = values(dataset({"when": when}, np.arange(400) // 20 % 2), "landmarkers")
    assert found["landmark_tree"] > 0.8


def test_standardise_leaves_no_rounding_noise() -> None:
    z = standardise(np.column_stack([np.full(1_000, 0.1), np.arange(1_000) * 1e-200]))
    assert not z[:, 0].any()
    assert z[:, 1].std() == pytest.approx(1) or not z[:, 1].any()


def test_folds_of_landmarkers_respect_groups_and_time() -> None:
    data = noisy_table(90)
    groups = np.arange(90) // 3
    grouped = draw_sample(Dataset.from_arrays(data.X, data.y, groups=groups))
    for train, test in build_arena(grouped).splits:
        assert not set(groups[grouped.rows[train]]) & set(groups[grouped.rows[test]])
    moments = np.random.default_rng(0).permutation(90)
    timed = draw_sample(Dataset.from_arrays(data.X, data.y, time=moments))
    for train, test in build_arena(timed).splits:
        assert moments[timed.rows[train]].max() < moments[timed.rows[test]].min()


def test_constant_scores() -> None:
    binary = constant_scores(dataset({"a": range(4)}, [0, 0, 0, 1]))
    assert binary["roc_auc"] == 0.5
    assert binary["accuracy"] == 0.75
    assert binary["balanced_accuracy"] == 0.5
    assert binary["log_loss"] == pytest.approx(-(0.75 * np.log(4 / 3) + 0.25 * np.log(4)))
    regression = constant_scores(dataset({"a": range(5)}, [0.0, 0, 0, 0, 50], task="regression"))
    assert regression == pytest.approx({"rmse": -20, "mae": -10, "r2": 0})


# --- against pymfe --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> tuple[dict[str, float], dict[str, Any], Dataset]:
    """Our features and pymfe's of one table of numbers, classes in shares 1/2, 1/3 and 1/6."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [300, 200, 100])
    x = rng.standard_normal((600, 5)) + y[:, None] * [1, 0.5, 0, 0, 0]
    x[:, 3] = np.exp(x[:, 3])
    x[:, 4] = x[:, 0] + 0.3 * x[:, 4]
    names = ["attr_to_inst", "inst_to_attr", "nr_inst", "nr_attr", "nr_class", "freq_class", "nr_num", "nr_cat",
             "nr_bin", "class_ent", "cor", "nr_cor_attr", "skewness", "kurtosis", "sd", "iq_range"]  # fmt: skip
    mfe = MFE(groups="all", features=names, summary=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mfe.fit(x, y, transform_num=False, transform_cat=None)
        found = dict(zip(*mfe.extract(), strict=True))
    data = Dataset.from_arrays(x, y)
    return values(data), found, data


def test_pymfe_agrees_on_size_and_classes(reference: Any) -> None:
    ours, theirs, _ = reference
    assert 10 ** ours["log_columns_per_row"] == pytest.approx(theirs["attr_to_inst"])
    assert 10 ** -ours["log_columns_per_row"] == pytest.approx(theirs["inst_to_attr"])
    assert 10 ** ours["log_rows"] == pytest.approx(theirs["nr_inst"])
    assert 10 ** ours["log_columns"] == pytest.approx(theirs["nr_attr"])
    assert 2 ** ours["log_classes"] == pytest.approx(theirs["nr_class"])
    assert ours["class_share_max"] == pytest.approx(max(theirs["freq_class"]))
    assert ours["class_share_min"] == pytest.approx(3 * min(theirs["freq_class"]))
    assert ours["class_entropy"] * np.log2(3) == pytest.approx(theirs["class_ent"])
    assert ours["constant_log_loss"] / np.log(2) == pytest.approx(theirs["class_ent"])
    assert ours["numeric_share"] == theirs["nr_num"] / theirs["nr_attr"]
    assert ours["categorical_share"] == theirs["nr_cat"] / theirs["nr_attr"]
    assert ours["binary_share"] == theirs["nr_bin"] / theirs["nr_attr"]


def test_pymfe_agrees_on_statistics(reference: Any) -> None:
    ours, theirs, _ = reference
    assert ours["correlation_abs_mean"] == pytest.approx(np.mean(theirs["cor"]))
    assert ours["correlation_abs_max"] == pytest.approx(np.max(theirs["cor"]))
    assert ours["correlated_pairs_share"] == pytest.approx(theirs["nr_cor_attr"])
    unbiased = np.sqrt(600 / 599)  # pymfe divides central moments by the n - 1 standard deviation
    skewness = np.abs(theirs["skewness"]) * unbiased**3
    assert ours["skewness_abs_mean"] == pytest.approx(np.mean(np.log1p(skewness)))
    assert ours["skewness_abs_max"] == pytest.approx(np.log1p(skewness.max()))
    kurtosis = (np.asarray(theirs["kurtosis"]) + 3) * unbiased**4
    assert ours["kurtosis_mean"] == pytest.approx(np.mean(np.log(kurtosis)))
    ratio = np.asarray(theirs["sd"]) / unbiased / np.asarray(theirs["iq_range"])
    assert ours["tail_weight_mean"] == pytest.approx(np.log10(ratio).mean())


def test_pymfe_agrees_on_information() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 900)
    codes = {k: np.where(rng.random(900) < 0.5, y, rng.integers(0, k, 900)) for k in (3, 4, 6)}
    x = pd.DataFrame({f"levels{k}": np.array(list("abcdef"))[column] for k, column in codes.items()})
    mfe = MFE(groups=["info-theory"], features=["attr_ent", "class_ent", "joint_ent", "mut_inf"], summary=None)
    mfe.fit(x.to_numpy(), y, transform_cat=None)
    theirs = {name: np.asarray(value) * np.log(2) for name, value in zip(*mfe.extract(), strict=True)}  # in nats
    sample = draw_sample(Dataset.from_arrays(x, y))
    ours = mutual_information(bin_columns(sample), bin_target(sample))
    bias = (sample.n_distinct - 1) * 2 / 1_800
    order = np.argsort(ours.column_entropies)
    theirs_order = np.argsort(theirs["attr_ent"])
    assert ours.column_entropies[order] == pytest.approx(theirs["attr_ent"][theirs_order])
    assert ours.target_entropy == pytest.approx(float(theirs["class_ent"]))
    assert (ours.mutual + bias)[order] == pytest.approx(theirs["mut_inf"][theirs_order], rel=1e-5)
    joint = ours.column_entropies + ours.target_entropy - ours.mutual - bias
    assert joint[order] == pytest.approx(theirs["joint_ent"][theirs_order], rel=1e-5)


# --- the promises of extract ----------------------------------------------------------------------------------------


def test_names_are_fixed_documented_and_many() -> None:
    found = extract(noisy_table(60))
    assert found.names == FEATURE_NAMES == tuple(found.to_series().index)
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES) >= 45
    assert {"simple", "missingness", "target", "structure", "landmarkers"} < set(FEATURE_GROUPS)
    assert all(len(describe(name)) > 20 for name in FEATURE_NAMES)
    assert list(describe_all().index) == list(FEATURE_NAMES)
    assert set(found.group_seconds) == {"sample", *FEATURE_GROUPS}
    assert 0 < sum(found.group_seconds.values()) <= found.seconds
    assert found.machine_seconds > 0
    assert pickle.loads(pickle.dumps(found)).values == pytest.approx(found.values, nan_ok=True)


def test_only_the_groups_that_are_asked_for() -> None:
    found = extract(noisy_table(60), groups=["target"])
    known = [name for name, value in found.values.items() if not np.isnan(value)]
    assert set(known) <= set(FEATURE_GROUPS["target"])
    assert np.isnan(found.machine_seconds)
    with pytest.raises(ValueError, match="groups must be among simple"):
        extract(noisy_table(60), groups=["sizes"])
    with pytest.raises(ValueError, match="name must be one of"):
        describe("nothing")


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_ordinary_tables_have_few_undefined_features(task: str) -> None:
    found = extract(noisy_table(task=task))
    undefined = {name for name, value in found.values.items() if np.isnan(value)}
    other_task = {n for n in FEATURE_GROUPS["target"] if np.isnan(found.values[n])}
    without = {"log_groups_per_row", "largest_group_share", "group_target_share", "time_target_trend",
               "time_target_autocorrelation", "duplicate_conflict_share"}  # fmt: skip
    assert undefined == other_task | without


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("n_rows", [200, 7_000])
def test_same_seed_same_features(task: str, n_rows: int) -> None:
    data = noisy_table(n_rows, task=task)
    assert np.array_equal(extract(data, seed=3).vector, extract(data, seed=3).vector, equal_nan=True)
    other = extract(data, seed=4).vector
    assert not np.array_equal(extract(data, seed=3).vector, other, equal_nan=True)


@pytest.mark.parametrize("n_columns", [6, 130])
@pytest.mark.parametrize("n_rows", [150, 6_000])
def test_order_and_names_of_columns_do_not_matter(n_rows: int, n_columns: int) -> None:
    data = noisy_table(n_rows, n_columns)
    shuffled = data.X.iloc[:, np.random.default_rng(5).permutation(data.n_features)]
    renamed = shuffled.set_axis([f"z{j}" for j in range(data.n_features)], axis=1)
    assert draw_sample(data).values.shape[1] <= MAX_COLUMNS
    assert same(extract(data), extract(Dataset.from_arrays(renamed, data.y)))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_order_of_rows_does_not_matter_below_the_limit(task: str) -> None:
    data = noisy_table(500, task=task)
    extra = {"groups": np.arange(500) % 50, "sample_weight": 1.0 + np.arange(500) % 3}
    order = np.random.default_rng(5).permutation(500)
    moved = {name: value[order] for name, value in extra.items()}
    a = Dataset.from_arrays(data.X, data.y, task=task, **extra)
    b = Dataset.from_arrays(data.X.iloc[order], data.y[order], task=task, **moved)
    assert same(extract(a), extract(b))


def test_symmetric_tables_have_one_canonical_form() -> None:
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)] * 6)
    y = (corners.sum(axis=1) + np.arange(48) // 24) % 2
    first = extract(Dataset.from_arrays(corners, y))
    rng = np.random.default_rng(0)
    for _ in range(3):
        rows, columns = rng.permutation(48), rng.permutation(3)
        assert same(first, extract(Dataset.from_arrays(corners[rows][:, columns], y[rows])))


def test_class_names_do_not_matter_while_their_order_stays() -> None:
    data = noisy_table(task="multiclass")
    renamed = Dataset.from_arrays(data.X, np.array(["ant", "bee", "cat"])[data.y])
    assert same(extract(data), extract(renamed))


def test_features_are_free_of_units() -> None:
    data = noisy_table(task="regression")
    scaled = data.X.copy()
    scaled[["c0", "c1"]] *= 2.0**30
    found = extract(Dataset.from_arrays(scaled, data.y * 2.0**20, task="regression"))
    plain = extract(data)
    differ = {n for n in FEATURE_NAMES if not np.isclose(found.values[n], plain.values[n], equal_nan=True, atol=0.02)}
    folds = set(FEATURE_GROUPS["landmarkers"])  # the content hash deals other folds
    assert differ - folds == {"constant_log_rmse", "scale_spread"}


def odd_tables() -> dict[str, Dataset]:
    rng = np.random.default_rng(0)
    n = 60
    x = rng.standard_normal(n)
    huge = np.where(rng.random(n) < 0.5, 1e308, -1e308)
    mixed = pd.Series([1, "a", None, 2.5, True, (1, 2)] * 10, dtype=object)
    text = [f"words number {i} that never come back" for i in range(n)]
    numeric = dict.fromkeys(["a"], ColumnKind.NUMERIC)
    return {
        "all missing": dataset({"a": x, "b": [np.nan] * n, "c": [None] * n}, x > 0),
        "nothing but missing": dataset({"a": [np.nan] * n, "b": [None] * n}, x > 0),
        "one number": dataset({"a": x}, x),
        "only text": dataset({"a": text}, x > 0),
        "constant": dataset({"a": [1.0] * n}, x > 0),
        "infinite": dataset({"a": np.where(x > 1, np.inf, x), "b": np.where(x > 0, -np.inf, np.inf)}, x > 0),
        "huge": dataset({"a": huge, "b": x * 1e-300}, huge, task="regression"),
        "three rows": dataset({"a": [1.0, 2, 3], "b": list("xyz")}, [0, 1, 1]),
        "three rows regression": dataset({"a": [1.0, 2, 3]}, [0.5, 1, 2], task="regression"),
        "constant target": dataset({"a": x}, np.ones(n), task="regression"),
        "zero target": dataset({"a": x}, np.zeros(n), task="regression"),
        "1000 classes": dataset({"a": rng.standard_normal(2_000)}, np.arange(2_000) % 1_000, task="multiclass"),
        "mixed objects": dataset({"a": mixed, "b": x}, x > 0),
        "wrong kind": dataset({"a": list("xyz") * 20, "b": x}, x > 0, kinds={**numeric, "b": ColumnKind.DATETIME}),
        "unknown kind": Dataset(pd.DataFrame({"a": x}), (x > 0).astype(int), TaskType.BINARY, np.array([0, 1]), {}),
        "nullable": dataset(
            {"a": pd.array([1, None, 3] * 20, "Int64"), "b": pd.array([True, None, False] * 20)}, x > 0
        ),
        "odd types": dataset({"a": pd.to_timedelta(x, "h"), "b": pd.period_range("2000", periods=n, freq="M")}, x),
        "unused levels": dataset({"a": pd.Categorical(list("xy") * 30, list("abxyz"), ordered=True)}, x > 0),
        "mixed time": dataset({"a": x}, x, time=np.array([1, "b", None] * 20, dtype=object)),
        "missing time": dataset({"a": x}, x, time=np.where(x > 0, np.nan, x)),
        "list groups": dataset({"a": x}, x, groups=np.array([None, "u", 3] * 20, dtype=object)),
        "one group": dataset({"a": x}, x > 0, groups=np.zeros(n)),
        "own group each": dataset({"a": x}, x > 0, groups=np.arange(n)),
        "dates with zones": dataset({"a": pd.date_range("2020", periods=n, tz="Europe/Paris")}, x > 0),
        "more columns than rows": Dataset.from_arrays(rng.standard_normal((12, 700)), np.arange(12) % 2),
    }


@pytest.mark.parametrize("name", list(odd_tables()))
@pytest.mark.filterwarnings("error")
def test_odd_tables_neither_raise_nor_warn(name: str) -> None:
    found = extract(odd_tables()[name])
    assert found.names == FEATURE_NAMES
    assert not np.isinf(found.vector).any()
    assert found.values["log_rows"] > 0


@st.composite
def tables(draw: st.DrawFn) -> Dataset:
    n = draw(st.integers(3, 30))
    odd_floats = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, np.nan])
    words = st.sampled_from(["a", "b c", "", None])
    kinds = (odd_floats, st.integers(-3, 3), words, st.booleans(), st.text(max_size=4))
    cells = st.sampled_from(kinds)
    columns = {}
    for j in range(draw(st.integers(1, 4))):
        columns[f"c{j}"] = pd.Series(draw(st.lists(draw(cells), min_size=n, max_size=n)))
    if draw(st.booleans()):
        y: Any = draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=n, max_size=n))
        return Dataset.from_arrays(pd.DataFrame(columns), y, task="regression")
    y = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(lambda labels: len(set(labels)) > 1))
    return Dataset.from_arrays(pd.DataFrame(columns), y, task="multiclass")


@SLOW
@given(tables(), st.randoms(use_true_random=False))
def test_any_table_is_described_alike_in_any_order(data: Dataset, random: Any) -> None:
    rows, columns = list(range(data.n_rows)), list(data.X.columns)
    found = extract(data)
    random.shuffle(columns)
    assert same(found, extract(Dataset.from_arrays(data.X[columns], data.y, task=data.task)))
    random.shuffle(rows)
    moved = Dataset.from_arrays(data.X[columns].iloc[rows], data.y[rows], task=data.task)
    assert same(extract(data, groups=CHEAP), extract(moved, groups=CHEAP))
    assert not np.isinf(found.vector).any()


def test_memory_is_bounded() -> None:
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays(rng.standard_normal((200_000, 20)), rng.integers(0, 2, 200_000))
    extract(data.subsample(100))
    tracemalloc.start()
    try:
        extract(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20


def test_dataset_is_left_as_it_is_and_not_kept() -> None:
    data = noisy_table()
    before = data.X.copy()
    extract(data)
    pd.testing.assert_frame_equal(before, data.X)
    assert "fingerprint" not in vars(data)  # hashing the whole table would not be bounded
