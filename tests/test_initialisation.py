"""Learned births: gradients that are right, tasks that are drawn as promised, weights that adapt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import grad

import autometa
from autometa import MetaInitializer
from autometa.collection import load_collection
from autometa.data import Dataset
from autometa.exceptions import ArtefactError, DataError, FamilyUnavailable, TrainingDiverged
from autometa.families import resolve_families
from autometa.families._net_estimators import NetClassifier, NetRegressor
from autometa.families._net_learned import learned_net
from autometa.gradient.fit import Rows
from autometa.gradient.inner_loop import TaskBatch, adapt_batch, adapt_weights, query_losses, rows_loss
from autometa.gradient.learned import Initialisation
from autometa.gradient.losses import classification_loss, regression_loss
from autometa.meta_training.episodes import SampledTasks, pad_rows
from autometa.meta_training.initialisation import METHODS, MetaTrainingPlan, meta_train_initialisation
from autometa.meta_training.learned_birth import KINDS, birth_file, train_learned_births
from autometa.meta_training.projected_tasks import MAX_CLASSES, TableTasks, encode_table
from autometa.nets.mlp import MLP, TableInput
from autometa.nets.projection import ProjectedInput, fit_layout

LOSS = regression_loss()


def small_net(n_outputs=1, seed=0, n_inputs=1, hidden=(8,)):
    torch.manual_seed(seed)
    return MLP(TableInput(n_inputs), n_outputs, hidden_sizes=hidden)


def parameters(net):
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def waves(generator, n_tasks=8, n_shots=10, n_query=10):
    amplitude = 1 + torch.rand(n_tasks, 1, generator=generator)
    phase = math.pi * torch.rand(n_tasks, 1, generator=generator)
    x = 4 * torch.rand(n_tasks, n_shots + n_query, generator=generator) - 2
    y = amplitude * torch.sin(x - phase)
    return TaskBatch(Rows(x[:, :n_shots, None], y[:, :n_shots]), Rows(x[:, n_shots:, None], y[:, n_shots:]))


# --- the inner loop ---


def test_one_step_is_gradient_descent_by_hand():
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 3.0])
    net = MLP(TableInput(1), 1, hidden_sizes=())  # y = w x + b
    weights = {"output.weight": torch.tensor([[0.5]]), "output.bias": torch.tensor([0.0])}
    after = adapt_weights(net, weights, Rows(x, y), loss=LOSS, rates={"output.weight": 0.1}, n_steps=1)
    slope = 2 * (1 * (0.5 - 1) + 2 * (1.0 - 3)) / 2  # mean over rows of 2 x (w x - y)
    assert after["output.weight"].item() == pytest.approx(0.5 - 0.1 * slope)
    assert after["output.bias"].item() == 0.0  # no rate, no step


@pytest.mark.parametrize("classifies", [False, True])
def test_gradcheck_of_the_inner_loop(classifies):
    net = small_net(3 if classifies else 1, hidden=(4,)).double()
    loss = classification_loss() if classifies else LOSS
    x = torch.randn(6, 1, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2]) if classifies else torch.sin(x[:, 0])
    weight = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    names = list(parameters(net))

    def adapted_loss(rate, *values):
        rates = dict.fromkeys(names, rate)
        start = dict(zip(names, values, strict=True))
        after = adapt_weights(net, start, Rows(x, y, weight), loss=loss, rates=rates, n_steps=3)
        return rows_loss(net, after, Rows(x, y, weight), loss)

    inputs = [torch.tensor(0.1, dtype=torch.float64, requires_grad=True)]
    inputs += [value.requires_grad_() for value in parameters(net).values()]
    assert torch.autograd.gradcheck(adapted_loss, inputs)


def meta_gradient(method, net, tasks, n_inner_steps=3, rate=0.1):
    from autometa.meta_training.initialisation import _Learner

    plan = MetaTrainingPlan(n_inner_steps=n_inner_steps, inner_rate=rate)
    return _Learner(net, method, LOSS, plan, "cpu")


def double_tasks():
    tasks = waves(torch.Generator().manual_seed(3), n_tasks=4)
    rows = [Rows(part.x.double(), part.y.double()) for part in (tasks.support, tasks.query)]
    return TaskBatch(*rows)


@pytest.mark.parametrize("method", ["maml", "anil", "meta_sgd"])
def test_second_order_gradient_is_the_finite_difference(method):
    tasks, learner = double_tasks(), meta_gradient(method, small_net(hidden=(6,)).double(), double_tasks())
    _, gradient = learner.gradient(tasks)
    direction = torch.randn(learner.theta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    epsilon, centre = 1e-5, learner.theta.clone()
    ends = []
    for sign in (1, -1):
        learner.theta = centre + sign * epsilon * direction
        ends.append(learner.gradient(tasks)[0].item())
    assert (gradient @ direction).item() == pytest.approx((ends[0] - ends[1]) / (2 * epsilon), rel=1e-6)


def test_first_order_gradient_is_the_query_gradient_at_the_adapted_weights():
    net, tasks = small_net(hidden=(6,)).double(), double_tasks()
    learner = meta_gradient("fomaml", net, tasks)
    _, gradient = learner.gradient(tasks)
    expected = torch.zeros_like(gradient)
    for i in range(len(tasks)):
        support, query = tasks.support.take(i), tasks.query.take(i)
        rates = dict.fromkeys(parameters(net), 0.1)
        adapted = adapt_weights(net, parameters(net), support, loss=LOSS, rates=rates, n_steps=3)
        found = grad(lambda w, q=query: rows_loss(net, w, q, LOSS))(adapted)
        expected += torch.cat([value.reshape(-1) for value in found.values()]) / len(tasks)
    torch.testing.assert_close(gradient, expected)
    _, through = meta_gradient("maml", net, tasks).gradient(tasks)
    assert not torch.allclose(gradient, through, rtol=1e-3)  # the second order is not nothing


def test_tasks_side_by_side_equal_tasks_alone():
    net, tasks = small_net(), waves(torch.Generator().manual_seed(0), n_tasks=3)
    rates = dict.fromkeys(parameters(net), 0.05)
    together = adapt_batch(net, parameters(net), tasks, loss=LOSS, rates=rates, n_steps=4)
    for i in range(3):
        alone = adapt_weights(net, parameters(net), tasks.support.take(i), loss=LOSS, rates=rates, n_steps=4)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][i], value, rtol=1e-4, atol=1e-6)


def test_bad_arguments_of_the_inner_loop():
    net, rows = small_net(), Rows(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="must name weights"):
        adapt_weights(net, parameters(net), rows, loss=LOSS, rates={"nothing": 0.1}, n_steps=1)
    with pytest.raises(ValueError, match="n_steps"):
        adapt_weights(net, parameters(net), rows, loss=LOSS, rates={}, n_steps=-1)


# --- meta-training ---


def error(net, weights, rates, n_steps):
    tasks = waves(torch.Generator().manual_seed(77), n_tasks=64)
    adapted = adapt_batch(net, weights, tasks, loss=LOSS, rates=rates, n_steps=n_steps)
    return query_losses(net, adapted, tasks, loss=LOSS).mean().item()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_to_adapt(method):
    net = small_net(hidden=(24,))
    plan = MetaTrainingPlan(n_meta_steps=80, n_inner_steps=2, inner_rate=0.1, meta_rate=0.02)
    birth = meta_train_initialisation(waves, method, net=net, loss=LOSS, plan=plan)
    learned = error(net, birth.weights, birth.rates, 4)
    assert learned < 0.8 * error(net, parameters(net), dict.fromkeys(parameters(net), 0.1), 4)
    assert learned < 0.8 * error(net, birth.weights, birth.rates, 0)
    if method == "anil":
        assert set(birth.rates) == {"output.weight", "output.bias"}
    if method == "meta_sgd":
        assert all(rate.shape == birth.weights[name].shape for name, rate in birth.rates.items())
        assert len(birth.rates["hidden.0.weight"].unique()) > 1


def test_the_same_seed_gives_the_same_weights_and_leaves_the_net():
    net = small_net()
    before = parameters(net)
    plan = MetaTrainingPlan(n_meta_steps=5)
    births = [meta_train_initialisation(waves, "meta_sgd", net=net, loss=LOSS, plan=plan, seed=s) for s in (1, 1, 2)]
    for name in before:
        assert torch.equal(births[0].weights[name], births[1].weights[name])
        assert torch.equal(net.get_parameter(name), before[name])
    assert any(not torch.equal(births[0].weights[n], births[2].weights[n]) for n in before)


def test_adam_inside_goes_with_first_order_methods():
    net = small_net(hidden=(24,))
    plan = MetaTrainingPlan(n_meta_steps=60, n_inner_steps=3, inner_optimizer="adam", inner_rate=0.03, meta_rate=0.02)
    birth = meta_train_initialisation(waves, "fomaml", net=net, loss=LOSS, plan=plan)
    tasks = waves(torch.Generator().manual_seed(77), n_tasks=64)
    errors = []
    for weights in (parameters(net), birth.weights):
        after = adapt_batch(net, weights, tasks, loss=LOSS, rates=birth.rates, n_steps=3, optimizer="adam")
        errors.append(query_losses(net, after, tasks, loss=LOSS).mean().item())
    assert errors[1] < 0.8 * errors[0]
    with pytest.raises(ValueError, match="fomaml"):
        meta_train_initialisation(waves, "maml", net=net, loss=LOSS, plan=plan)


def test_bad_meta_training_is_explained():
    with pytest.raises(ValueError, match="method must be one of"):
        meta_train_initialisation(waves, "magic", net=small_net(), loss=LOSS)
    with pytest.raises(ValueError, match="at least 4 rows"):
        meta_train_initialisation([Rows(torch.zeros(2, 1), torch.zeros(2))], net=small_net(), loss=LOSS)
    for bad in ({"n_meta_steps": 0}, {"inner_rate": 0.0}, {"n_support": (5, 2)}, {"inner_optimizer": "lion"}):
        with pytest.raises(ValueError, match="Got"):
            MetaTrainingPlan(**bad)
    plan = MetaTrainingPlan(n_meta_steps=3, inner_rate=1e30)
    with pytest.raises(TrainingDiverged, match="Lower"):
        meta_train_initialisation(waves, "maml", net=small_net(), loss=LOSS, plan=plan)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_meta_training_on_a_gpu_equals_the_cpu():
    plan = MetaTrainingPlan(n_meta_steps=20)
    cpu, gpu = (
        meta_train_initialisation(waves, "maml", net=small_net(), loss=LOSS, plan=plan, device=device)
        for device in ("cpu", "cuda")
    )
    for name, value in cpu.weights.items():
        torch.testing.assert_close(gpu.weights[name], value, rtol=1e-2, atol=1e-3)


def test_a_birth_survives_saving(tmp_path):
    plan = MetaTrainingPlan(n_meta_steps=2)
    birth = meta_train_initialisation(waves, "meta_sgd", net=small_net(), loss=LOSS, plan=plan)
    birth.save(tmp_path / "birth.safetensors")
    again = Initialisation.load(tmp_path / "birth.safetensors")
    assert (again.n_steps, again.method) == (birth.n_steps, "meta_sgd")
    for name, value in birth.weights.items():
        assert torch.equal(again.weights[name], value)
        assert torch.equal(again.rates[name], birth.rates[name])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtefactError, match="cannot be read"):
        Initialisation.load(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="must have a weight"):
        birth.install(small_net(hidden=(4,)))


# --- tasks ---


def test_sampled_tasks_never_show_a_query_row():
    tables = [Rows(torch.arange(n).float()[:, None] + 100 * i, torch.full((n,), i)) for i, n in enumerate((6, 30))]
    draw = SampledTasks.of(tables, 12, (3, 8), 5)
    for seed in range(5):
        batch = draw(torch.Generator().manual_seed(seed))
        for i in range(12):
            support = batch.support.x[i][batch.support.weight[i] > 0].flatten().tolist()
            query = batch.query.x[i][batch.query.weight[i] > 0].flatten().tolist()
            assert support
            assert query
            assert not set(support) & set(query)
            assert len({int(v) // 100 for v in support + query}) == 1


def test_padding_weighs_nothing():
    parts = [Rows(torch.ones(2, 3), torch.zeros(2)), Rows(torch.ones(4, 3), torch.zeros(4))]
    block = pad_rows(parts)
    assert block.weight.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def mixed_table(n=200, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n), "c": rng.choice(list("xyz"), n)})
    return frame, rng


def test_tasks_of_tables_know_only_their_support_rows():
    frame, rng = mixed_table()
    labels = rng.integers(0, 3, len(frame)).astype(str)
    table = encode_table(Dataset.from_arrays(frame, labels))
    batch = TableTasks((table,), n_hidden=4, n_tasks=6, n_support=(20, 20))(torch.Generator().manual_seed(0))
    assert batch.support.x.shape == (6, 20, 20)
    assert int(batch.support.y.max()) < MAX_CLASSES
    bias = batch.own["output.bias"]
    for i in range(6):
        shares = torch.softmax(bias[i], 0)
        assert shares[batch.support.y[i].unique()].sum().item() == pytest.approx(1, abs=1e-6)
    values = encode_table(Dataset.from_arrays(frame, 1e6 + 50 * rng.normal(size=len(frame))))
    batch = TableTasks((values,), n_hidden=4, n_tasks=2, n_support=(50, 50))(torch.Generator().manual_seed(0))
    assert batch.support.y.mean(1).abs().max() < 1e-2
    with pytest.raises(ValueError, match="Got both"):
        TableTasks((table, values), n_hidden=4)


# --- the fixed layout ---


def test_layout_does_not_depend_on_units_and_drops_constants():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 7.0
    factors = torch.tensor([1.0, 1000.0, 0.01, 1.0])
    first = ProjectedInput(4, layout=fit_layout(x))(x)
    second = ProjectedInput(4, layout=fit_layout(x * factors + 5))(x * factors + 5)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)
    assert first.shape == (100, 20)
    assert (first[:, 3:] == 0).all()  # three columns that vary, three components
    assert first.square().mean(0).sum().item() == pytest.approx(20, rel=1e-3)
    assert first.mean(0).abs().max() < 1e-4


def test_layout_of_categories_wide_and_tiny_tables():
    codes = torch.randint(0, 4, (60, 2), generator=torch.Generator().manual_seed(0)).float()
    module = ProjectedInput(0, [4, 4], layout=fit_layout(codes, [4, 4]))
    assert module(codes).shape == (60, 20)
    assert torch.equal(module(codes[:1]), module(torch.stack([codes[0], codes[0]]))[:1])
    wide = torch.randn(10, 50, generator=torch.Generator().manual_seed(1))
    z = ProjectedInput(50, layout=fit_layout(wide))(wide)
    assert torch.isfinite(z).all()
    correlation = z[:, :9].T @ z[:, :9]
    assert (correlation - correlation.diag().diag()).abs().max() < 1e-2 * correlation.max()


# --- families of tables with the same columns ---


def city_tables(n_tables=24, n_rows=40, seed=0, classify=False):
    """y = slope of the table x a + effect of the category; every table has its own slope."""
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(n_tables):
        frame, _ = mixed_table(n_rows, int(rng.integers(1 << 30)))
        y = rng.choice([-2.0, 2.0]) * frame["a"] + frame["c"].map({"x": 0.0, "y": 0.5, "z": 1.0})
        tables.append((frame, np.where(y > 0.5, "yes", "no") if classify else y.to_numpy()))
    return tables


@pytest.fixture(scope="module")
def meta():
    return MetaInitializer(
        n_meta_steps=80, hidden_sizes=(24,), n_shots=(10, 14), n_inner_steps=3, inner_rate=0.1, meta_rate=0.02
    ).fit(city_tables())


def test_adapted_nets_learn_what_differs_between_tables(meta):
    gains = []
    for X, y in city_tables(12, seed=5):
        few, rest = slice(0, 12), slice(12, None)
        errors = [np.mean((meta.adapt(X[few], y[few], n_steps=n).predict(X[rest]) - y[rest]) ** 2) for n in (0, None)]
        gains.append(errors[0] - errors[1])
    assert np.mean(gains) > 1.0  # the slopes +2 and -2 average to nothing: only adaptation can tell


def test_meta_initializer_classifies_unknown_categories_and_orders_of_columns():
    tables = city_tables(8, classify=True)
    meta = MetaInitializer("fomaml", n_meta_steps=10, hidden_sizes=(16,)).fit(tables)
    X, y = tables[0]
    model = meta.adapt(X[:10], y[:10])
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1)
    np.testing.assert_array_equal(model.classes[proba.argmax(1)], model.predict(X))
    np.testing.assert_allclose(model.predict_proba(X[["c", "b", "a"]]), proba)
    assert np.isfinite(model.predict_proba(X.assign(c="new"))).all()
    again = MetaInitializer("fomaml", n_meta_steps=10, hidden_sizes=(16,)).fit(tables)
    np.testing.assert_array_equal(again.adapt(X[:10], y[:10]).predict_proba(X), proba)
    with pytest.raises(DataError, match="must be one of"):
        meta.adapt(X[:3], ["yes", "no", "maybe"])


def test_meta_initializer_explains_bad_tables(meta):
    X, y = city_tables(1)[0]
    with pytest.raises(DataError, match="at least 2 tables"):
        MetaInitializer().fit([(X, y)])
    with pytest.raises(DataError, match="columns of the first"):
        MetaInitializer().fit([(X, y), (X.drop(columns="b"), y)])
    with pytest.raises(DataError, match="Got both"):
        MetaInitializer().fit([Dataset.from_arrays(X, y), Dataset.from_arrays(X, np.arange(len(X)) % 2)])
    with pytest.raises(DataError, match="finite"):
        meta.adapt(X[:3], [1.0, np.inf, 2.0])
    with pytest.raises(AttributeError, match="regression"):
        meta.adapt(X[:5], y[:5]).predict_proba(X)


# --- the shipped birth ---


def rows_of(classify, n=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator)
    x[:, 0] = torch.randint(0, 4, (n,), generator=generator).float()
    y = x[:, 1] - x[:, 2]
    return Rows(x, (y > 0).long()) if classify else Rows(x, (y - y.mean()) / y.std())


@pytest.mark.parametrize("classify", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_shipped_birth_begins_at_the_constant_answer_and_descends(classify, dropout):
    rows, loss = rows_of(classify), classification_loss() if classify else LOSS
    nets = [learned_net(rows, [4], 2 if classify else 0, dropout=dropout, n_steps=n).eval() for n in (0, 1, 5)]
    with torch.no_grad():
        outputs = nets[0](rows.x)
        assert outputs.std(0).max() == 0
        values = [loss(net(rows.x), rows.y, None).item() for net in nets]
    assert values[2] < values[1] < values[0]
    assert values[2] < 0.9 * values[0]


def test_nets_of_the_learned_birth_are_fitted_kept_and_reproduced():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 12)).astype(np.float32)
    X[:, 0] = rng.integers(0, 4, 120)
    y = np.where(X[:, 1] + X[:, 2] > 0, "b", "a")
    config = {"init": "learned", "n_epochs": 48, "learning_rate": 0.005}
    models = [NetClassifier(config=config, n_categorical=1).fit(X, y) for _ in range(2)]
    np.testing.assert_array_equal(*(model.predict_proba(X) for model in models))
    assert (models[0].predict(X) == y).mean() > 0.8
    again = NetClassifier.from_state(*models[0].to_state())
    np.testing.assert_array_equal(again.predict_proba(X), models[0].predict_proba(X))
    other = NetClassifier(config=config, n_categorical=1, birth_fold=0).fit(X, y)
    assert not np.array_equal(other.predict_proba(X), models[0].predict_proba(X))
    with pytest.raises(FamilyUnavailable, match="learned birth"):
        NetClassifier(config=config, n_categorical=1, birth_fold=99).fit(X, y)


def test_every_group_was_held_out_of_one_of_the_shipped_folds():
    folder = Path(autometa.__file__).parent / "pretrained" / "learned_birth"
    card = json.loads((folder / "card.json").read_text())
    dev = load_collection("dev")
    assert set(card["held_out_of_fold"].values()) == set(range(card["n_folds"]))
    assert not set(card["held_out_of_fold"]) & dev.groups
    assert not set(card["held_out_of_fold"]) & load_collection("open_test").groups
    for kind in KINDS:
        for fold in [None, *range(card["n_folds"])]:
            assert set(Initialisation.load(folder / birth_file(kind, fold)).weights) == set(card_weights())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000


def card_weights():
    return ["hidden.0.weight", "hidden.0.bias", "hidden.2.weight", "hidden.2.bias"]


def test_the_pool_stays_the_one_that_was_measured():
    family = resolve_families(["mlp"])[0]
    assert all(candidate.config["init"] == "random" for candidate in family.pool(24))
    family.search_space.validate({**family.default_config, "init": "learned"})


def test_training_the_shipped_birth_on_few_tables(tmp_path):
    frame, rng = mixed_table(80)
    tables = []
    for i in range(4):
        noise = rng.normal(size=len(frame))
        y = frame["a"] + frame["b"] + noise
        tables.append(encode_table(Dataset.from_arrays(frame, y, name=f"r{i}"), group=f"g{i}"))
        tables.append(encode_table(Dataset.from_arrays(frame, y > 0, name=f"c{i}"), group=f"g{i}"))
    plan = MetaTrainingPlan(n_meta_steps=2, tasks_per_step=2, n_support=(16, 20))
    train_learned_births(tables, tmp_path, plan=plan, n_folds=2)
    card = json.loads((tmp_path / "card.json").read_text())
    assert set(card["held_out_of_fold"]) == {"g0", "g1", "g2", "g3"}
    birth = Initialisation.load(tmp_path / "classification_fold1.safetensors")
    assert birth.rates["output.weight"].shape == (1, 64)
    assert learned_net(rows_of(True), [4], 2, birth=birth, n_steps=1)(rows_of(True).x).shape == (64, 2)


def test_small_tables_and_wild_targets_take_steps_that_help():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3)).astype(np.float32)
    model = NetRegressor(config={"init": "learned"}).fit(X, X[:, 0])
    assert model.result_.stop_reason == "too few rows"
    assert np.corrcoef(model.predict(X), X[:, 0])[0, 1] > 0.5
    y = np.zeros(40)
    y[0] = 1e9
    assert np.isfinite(NetRegressor(config={"init": "learned"}).fit(X, y).predict(X)).all()
