"""The race of births: who enters, who wins, and what becomes of the winner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.metrics import log_loss
from torch import nn

from autometa.data import Dataset, TaskType
from autometa.evaluation import evaluate
from autometa.exceptions import FamilyUnavailable, TrainingDiverged
from autometa.families import _net_births, resolve_families
from autometa.families._net_births import OWN_STEPS, RANDOM, BirthTask, fit_births, generate_net, make_generated_net
from autometa.families._net_config import hold_out
from autometa.families._net_estimators import NetClassifier, NetRegressor
from autometa.family import Candidate
from autometa.gradient import losses
from autometa.gradient.fit import FitResult, Rows, TrainingPlan, fit_net
from autometa.gradient.initialization import initialize
from autometa.gradient.optimizers import OptimizerConfig
from autometa.gradient.schedules import Schedule
from autometa.nets.mlp import MLP, TableInput
from autometa.nets.weight_generator import WeightGenerator
from autometa.records import Status

PLAN = TrainingPlan(Schedule("cosine", 3e-3), OptimizerConfig("adam"), n_epochs=3, batch_size=32, patience=2)


@pytest.fixture(scope="module")
def generator() -> WeightGenerator:
    """Not trained: the closed-form readout alone makes it useful."""
    return WeightGenerator(width=16, n_blocks=1, head_width=16).eval().requires_grad_(False)


def make_rows(n: int, n_classes: int, n_features: int = 4, n_levels: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, n_features, generator=generator)
    score = x[:, 0] - x[:, 1] + 0.3 * torch.randn(n, generator=generator)
    if n_levels:
        codes = torch.randint(1, n_levels + 1, (n, 1), generator=generator).float()
        score = score + 2 * (codes[:, 0] == 1)
        x = torch.cat([codes, x], 1)
    if not n_classes:
        return Rows(x, (score - score.mean()) / score.std())
    return Rows(x, torch.bucketize(score, torch.quantile(score, torch.linspace(0, 1, n_classes + 1)[1:-1])))


def make_task(rows: Rows, n_classes: int, plan: TrainingPlan = PLAN, sizes: tuple[int, ...] = ()) -> BirthTask:
    train, held = hold_out(rows.y.numpy(), stratify=n_classes > 0, seed=0)
    judge = losses.classification_validation_loss if n_classes else losses.regression_validation_loss
    return BirthTask(rows, torch.from_numpy(train), torch.from_numpy(held), sizes, n_classes, plan, judge, seed=0)


def make_train(task: BirthTask):
    loss = losses.classification_loss() if task.n_classes else losses.regression_loss()

    def train(net: nn.Module, plan: TrainingPlan, validation: Rows | None) -> FitResult:
        rows = task.rows.take(task.train)
        return fit_net(net, rows, plan=plan, loss=loss, validation=validation, validation_loss=task.judge, seed=0)

    return train


def make_random(task: BirthTask):
    sizes = task.category_sizes
    n_numeric, n_outputs = task.rows.x.shape[1] - len(sizes), max(1, task.n_classes)
    return lambda: initialize(lambda: MLP(TableInput(n_numeric, sizes), n_outputs, hidden_sizes=(16,)), seed=0)


def run(task: BirthTask, generator: WeightGenerator | None, **more):
    return fit_births(task, make_random(task), make_train(task), generator=generator, **more)


@pytest.mark.parametrize("n_classes", [0, 2, 3])
def test_generated_net_knows_more_than_a_constant(generator, n_classes):
    rows = make_rows(200, n_classes, n_levels=3)
    net = generate_net(rows, (4,), n_classes, generator=generator)
    with torch.no_grad():
        output = net(rows.x)
    if n_classes:
        assert losses.classification_validation_loss(output, rows.y, None) < 0.8 * np.log(n_classes)
    else:
        assert losses.regression_validation_loss(output, rows.y, None) < 0.5
    again = generate_net(rows, (4,), n_classes, generator=generator)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_generated_net_is_restored_from_its_state(generator):
    rows = make_rows(80, 3, n_levels=3)
    net = generate_net(rows, (4,), 3, generator=generator)
    twin = make_generated_net(5, (4,), 3).eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(rows.x), net(rows.x))


def test_wide_and_long_tables_are_read_by_the_rule(generator):
    wide = make_rows(120, 2, n_features=180)
    assert torch.isfinite(generate_net(wide, (), 2, generator=generator)(wide.x)).all()
    long = make_rows(5_100, 2)
    net = generate_net(long, (), 2, generator=generator)
    with torch.no_grad():
        assert losses.classification_validation_loss(net(long.x), long.y, None) < 0.5


def test_too_many_classes_are_refused(generator):
    with pytest.raises(FamilyUnavailable, match="at most 32 classes"):
        generate_net(make_rows(200, 33), (), 33, generator=generator)


def test_below_a_hundred_rows_there_is_no_race(generator):
    task = make_task(make_rows(90, 2), 2)
    net, result, report = run(task, generator)
    assert report.winner == OWN_STEPS
    assert report.losses == {}
    assert result.n_steps == 0
    assert "no race" in str(report)
    whole = generate_net(task.rows, (), 2, generator=generator)
    assert torch.equal(net(task.rows.x), whole(task.rows.x))  # the hold-out was read too


@pytest.mark.parametrize("n_classes", [0, 3])
def test_the_race_is_won_by_the_lowest_loss_and_the_winner_is_no_worse_in_the_end(generator, n_classes):
    task = make_task(make_rows(240, n_classes), n_classes)
    net, _, report = run(task, generator)
    assert set(report.losses) == {OWN_STEPS, "generated, 10 Adam steps", "generated, 30 Adam steps", RANDOM}
    held = task.rows.take(task.held)
    with torch.no_grad():
        final = float(task.judge(net(held.x), held.y, None))
    best = min(report.losses.values())
    if "more steps did not help" not in report.reason:  # then all rows were read again
        assert final <= best + 1e-6
    assert report.winner in report.losses
    assert report.winner in str(report)


def test_another_contestant_can_win_and_goes_on(generator):
    task = make_task(make_rows(240, 2), 2)
    net, _, report = run(task, generator, others={"oracle": lambda: _Oracle()})
    assert report.winner == "oracle"
    assert isinstance(net, _Oracle)


class _Oracle(nn.Module):
    """Knows the rule by which the rows were made."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(6.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = self.gain * (x[:, 0] - x[:, 1])
        return torch.stack([-score, score], 1)


def test_where_nothing_can_be_generated_the_random_birth_runs(generator):
    for n in (90, 330):
        task = make_task(make_rows(n, 33), 33)
        net, result, report = run(task, generator)
        assert report.winner == RANDOM
        assert "at most 32 classes" in report.reason
        assert result.n_steps > 0
        assert torch.isfinite(net(task.rows.x)).all()


def test_a_plan_that_diverges_is_undone(generator):
    task = make_task(make_rows(240, 2), 2)
    inner = make_train(task)

    def train(net: nn.Module, plan: TrainingPlan, validation: Rows | None) -> FitResult:
        if validation is not None:
            with torch.no_grad():
                for value in net.parameters():
                    value.fill_(float("nan"))
            raise TrainingDiverged("as told")
        return inner(net, plan, validation)

    net, result, report = fit_births(task, make_random(task), train, generator=generator)
    if report.winner == RANDOM:
        pytest.skip("the random birth won")
    assert result.n_steps == 0
    assert torch.isfinite(net(task.rows.x)).all()


def test_a_random_birth_that_ends_worse_gives_way(generator):
    """The random birth wins the race, by a squeezed plan that is better than the whole one."""
    task = make_task(make_rows(240, 2), 2)
    oracle, worse = _Oracle(), _Oracle()
    with torch.no_grad():
        worse.gain.fill_(-6.0)
    made = iter([oracle, worse])

    def train(net: nn.Module, plan: TrainingPlan, validation: Rows | None) -> FitResult:
        return FitResult((), (), 0, 0, 32, "cpu", "stopped", 0.0)

    net, _, report = fit_births(task, lambda: next(made), train, generator=generator)
    assert report.winner != RANDOM
    assert net is not worse


@pytest.mark.parametrize("n_rows", [80, 160])
@pytest.mark.parametrize("estimator", [NetClassifier, NetRegressor])
def test_an_estimator_born_by_generation_predicts_and_is_restored(generator, monkeypatch, estimator, n_rows):
    monkeypatch.setattr(_net_births, "shipped_generator", lambda: generator)
    rows = make_rows(n_rows, 3 if estimator is NetClassifier else 0, n_levels=3)
    X, y = rows.x.numpy(), rows.y.numpy() * 5
    model = estimator(config={"init": "generated", "n_epochs": 4}, n_categorical=1).fit(X, y)
    assert model.score(X, y) > 0.5
    assert model.birth_.init in ("random", "learned", "generated")
    assert n_rows > 100 or model.birth_.winner == OWN_STEPS
    twin = estimator.from_state(*model.to_state())
    assert np.array_equal(twin.predict(X), model.predict(X))
    again = estimator(config={"init": "generated", "n_epochs": 4}, n_categorical=1).fit(X, y)
    assert np.array_equal(again.predict(X), model.predict(X))


def test_the_random_birth_says_so():
    rows = make_rows(80, 2)
    model = NetClassifier(config={"n_epochs": 1}).fit(rows.x.numpy(), rows.y.numpy())
    assert str(model.birth_) == "birth: random (asked for)"


def test_a_birth_that_cannot_be_had_is_a_failed_row_with_its_reason():
    rng = np.random.default_rng(0)
    dataset = Dataset.from_arrays(rng.normal(size=(200, 2)), np.arange(200) % 40, task=TaskType.MULTICLASS)
    (family,) = resolve_families(["mlp"])
    candidate = Candidate("mlp", {**family.default_config, "init": "generated"})
    found = evaluate(candidate, dataset, families=[family], splits=[(np.arange(120), np.arange(120, 200))])
    assert found.status is Status.FAILED
    assert "at most 32 classes. Got 40" in found.reason


def test_a_missing_shipped_generator_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(_net_births, "_FOLDER", tmp_path)
    _net_births.shipped_generator.cache_clear()
    with pytest.raises(FamilyUnavailable, match="cannot be used"):
        _net_births.shipped_generator()
    _net_births.shipped_generator.cache_clear()


def test_the_shipped_generator_knows_a_real_table_from_eighty_rows():
    """Wine, of no group that it was trained on; a constant has a log loss of 1.09."""
    X, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:80], order[80:]
    scaled = ((X - X[train].mean(0)) / X[train].std(0)).astype(np.float32)
    model = NetClassifier(config={"init": "generated"}).fit(scaled[train], y[train])
    assert model.birth_.winner == OWN_STEPS
    assert log_loss(y[test], model.predict_proba(scaled[test])) < 0.2
    assert "wine" not in _net_births.shipped_generator().card["groups"]
