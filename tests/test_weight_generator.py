"""The weight generator: symmetries, gradients, limits, and that training lowers its loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from autometa.data import as_dataset
from autometa.exceptions import ArtefactError, FamilyUnavailable
from autometa.meta_training.generation import GenerationOptions, generator_losses, train_weight_generator
from autometa.meta_training.generation_tasks import (
    TRAINED_CLASSES,
    TRAINED_FEATURES,
    GeneratorTasks,
    RealTables,
    TableSource,
    TaskShape,
    cut_tasks,
    draw_shape,
    draw_synthetic,
)
from autometa.meta_training.synthetic_tables import Dice, draw_tables
from autometa.nets._readout import Labels, Shrinkage, discriminant, leave_one_out_skill, ridge_regression
from autometa.nets.batched import call_batched, descend, make_child
from autometa.nets.mlp import MLP
from autometa.nets.standard_input import StandardInput, column_scales, standardise
from autometa.nets.weight_generator import MAX_CLASSES, MAX_FEATURES, MAX_ROWS, TENSORS, WeightGenerator


def small_generator(seed: int = 0) -> WeightGenerator:
    return WeightGenerator(width=16, n_blocks=1, head_width=24, seed=seed)


def toy_tasks(n_classes: int, *, b: int = 2, n: int = 48, f: int = 4, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Standardised inputs and a target that depends on the first two columns."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, f, generator=generator)
    x = standardise(x, *column_scales(x))
    score = x[..., 0] + 0.5 * x[..., 1]
    if not n_classes:
        return x, (score - score.mean(1, keepdim=True)) / score.std(1, keepdim=True)
    cuts = torch.quantile(score, torch.linspace(0, 1, n_classes + 1)[1:-1], dim=1).T
    return x, (score[..., None] > cuts[:, None]).sum(-1)


def predict(generator: WeightGenerator, x: torch.Tensor, y: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Outputs on the rows after generation and the generated steps."""
    birth = generator(x, y, n_classes=n_classes)
    net = make_child(x.shape[2], max(1, n_classes))
    return call_batched(net, descend(net, birth.weights, x, y, rates=birth.rates), x)


@pytest.mark.parametrize("n_classes", [0, 2, 4])
def test_order_of_features_and_rows_does_not_matter(n_classes):
    generator, (x, y) = small_generator(), toy_tasks(n_classes)
    columns, rows = torch.tensor([2, 0, 3, 1]), torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(1))
    expected = predict(generator, x, y, n_classes)
    assert torch.allclose(predict(generator, x[..., columns], y, n_classes), expected, atol=1e-4)
    assert torch.allclose(predict(generator, x[:, rows], y[:, rows], n_classes), expected[:, rows], atol=1e-4)
    first = generator(x, y, n_classes=n_classes).weights["hidden.0.weight"]
    moved = generator(x[..., columns], y, n_classes=n_classes).weights["hidden.0.weight"]
    assert torch.allclose(moved, first[..., columns], atol=1e-5)


def test_order_of_classes_only_orders_the_outputs():
    generator, (x, y) = small_generator(), toy_tasks(4)
    new_code = torch.tensor([2, 0, 3, 1])
    expected = predict(generator, x, y, 4)
    found = predict(generator, x, new_code[y], 4)
    assert torch.allclose(found[..., new_code], expected, atol=1e-4)
    assert not torch.allclose(found, expected, atol=1e-2)


def test_tasks_do_not_see_each_other():
    generator, (x, y) = small_generator(), toy_tasks(3)
    together, alone = predict(generator, x, y, 3), predict(generator, x[1:], y[1:], 3)
    assert torch.allclose(together[1:], alone, atol=1e-4)


def test_a_class_without_rows_gets_no_probability():
    x, y = toy_tasks(3)
    output = predict(small_generator(), x, y, 5)
    assert torch.softmax(output, -1)[..., 3:].max() < 1e-6


def test_same_seed_gives_same_weights_and_leaves_the_global_state():
    state = torch.get_rng_state()
    a, b, c = small_generator(1), small_generator(1), small_generator(2)
    assert torch.equal(state, torch.get_rng_state())
    x, y = toy_tasks(2)
    assert all(torch.equal(a(x, y, n_classes=2).weights[n], b(x, y, n_classes=2).weights[n]) for n in TENSORS)
    assert not torch.equal(a.hidden_weight, c.hidden_weight)


def test_generated_weights_fit_the_one_mlp():
    x, y = toy_tasks(3)
    birth, net = small_generator()(x, y, n_classes=3), make_child(4, 3)
    assert isinstance(net, MLP)
    assert {name: value[0].shape for name, value in birth.weights.items()} == {
        name: value.shape for name, value in net.named_parameters()
    }
    net.load_state_dict({name: value[1].detach() for name, value in birth.weights.items()})
    assert torch.allclose(net(x[1]), call_batched(net, birth.weights, x)[1], atol=1e-5)
    assert 0 < birth.rates.min() <= birth.rates.max() <= 2


def test_rates_are_clamped():
    generator = small_generator()
    with torch.no_grad():
        generator.log_rates.add_(20.0)
    assert generator(*toy_tasks(2), n_classes=2).rates.max() == 2


@pytest.mark.parametrize(
    ("n", "f", "n_classes", "what"),
    [(MAX_ROWS + 1, 2, 2, "rows"), (20, MAX_FEATURES + 1, 2, "features"), (40, 2, MAX_CLASSES + 1, "classes")],
)
def test_tables_outside_of_the_limits_are_refused(n, f, n_classes, what):
    y = torch.arange(n)[None] % n_classes
    with pytest.raises(FamilyUnavailable, match=what):
        small_generator()(torch.randn(1, n, f), y, n_classes=n_classes)


def test_inner_loop_matches_finite_differences():
    """Through two steps, second order, in double precision; on a smooth net, as finite differences need one."""
    x, y = (part[:, :6] for part in toy_tasks(0, b=1, f=2))
    x, y = x.double(), y.double()
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()
    names = [name for name, _ in net.named_parameters()]
    weights = [value.detach()[None].clone().requires_grad_() for value in net.parameters()]
    rates = torch.full((1, 2, len(names)), 0.1, dtype=torch.float64, requires_grad=True)

    def moved(rates, *values):
        given = dict(zip(names, values, strict=True))
        return tuple(descend(net, given, x, y, rates=rates, first_order=False).values())

    assert gradcheck(moved, (rates, *weights))


def test_first_order_takes_the_steps_for_constants():
    x, y = toy_tasks(3)
    birth, net = small_generator()(x, y, n_classes=3), make_child(4, 3)
    weights = {name: value.detach().requires_grad_() for name, value in birth.weights.items()}
    moved = descend(net, weights, x, y, rates=birth.rates.detach())
    moved["output.bias"].sum().backward()
    assert torch.equal(weights["output.bias"].grad, torch.ones_like(weights["output.bias"]))
    assert weights["hidden.0.weight"].grad is None


@pytest.mark.parametrize("readout", ["discriminant", "ridge"])
def test_readouts_match_finite_differences(readout):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.rand(3, 2, 3, generator=generator, dtype=torch.float64).add(0.1).requires_grad_()
    codes = (torch.arange(12) % 3).expand(2, 12)

    def solve(z, values):
        shrinkage = Shrinkage(0.5 * values[0], values[1], values[2])
        if readout == "ridge":
            return ridge_regression(z, codes.double(), shrinkage)
        return discriminant(z, Labels.of(codes, 3, z.dtype), shrinkage)

    assert gradcheck(solve, (z, values))


def test_unshrunk_readouts_are_the_textbook_ones():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LinearRegression

    x, y = toy_tasks(3, b=1, n=200)
    x, one = x.double(), torch.ones(1, 4, dtype=torch.float64)
    weak = Shrinkage(one * 1e-9, one * 1e-9, one)
    weight, bias = discriminant(x, Labels.of(y, 3, x.dtype), weak)
    expected = LinearDiscriminantAnalysis().fit(x[0].numpy(), y[0].numpy()).predict_proba(x[0].numpy())
    found = torch.softmax(x @ weight.transpose(1, 2) + bias[:, None], -1)[0].numpy()
    assert np.abs(found - expected).mean() < 0.02
    target = x[..., 0] * 2 - x[..., 1] + 3
    weight, bias = ridge_regression(x, target, weak)
    model = LinearRegression().fit(x[0].numpy(), target[0].numpy())
    assert np.allclose(weight[0, 0], model.coef_, atol=0.02)
    assert np.allclose(bias[0, 0], model.intercept_, atol=0.02)


def test_leave_one_out_skill_is_what_refitting_without_each_row_gives():
    x, y = toy_tasks(0, b=1, n=30, f=3)
    x, y = x.double(), y.double() + 0.5 * torch.randn(1, 30, generator=torch.Generator().manual_seed(3)).double()
    found = float(leave_one_out_skill(x, y[..., None], (1e-9,)))
    errors = []
    design = torch.cat([x[0], torch.ones(30, 1, dtype=x.dtype)], 1)
    for i in range(30):
        rest = torch.arange(30) != i
        solution = torch.linalg.lstsq(design[rest], y[0, rest, None]).solution
        errors.append(float(y[0, i] - design[i] @ solution[:, 0]))
    expected = 1 - np.square(errors).sum() / float((y - y.mean()).square().sum())
    assert found == pytest.approx(expected, abs=0.01)


def test_saved_and_loaded_generator_writes_the_same_weights(tmp_path):
    generator, (x, y) = small_generator(), toy_tasks(3)
    generator.save(tmp_path, {"n_steps": 7})
    loaded, again = WeightGenerator.load(tmp_path), WeightGenerator.load(tmp_path)
    assert loaded.card["n_steps"] == 7
    assert not loaded.training
    expected = predict(generator, x, y, 3)
    assert torch.allclose(predict(loaded, x, y, 3), expected, atol=0.05 * float(expected.detach().abs().max()))
    assert torch.equal(predict(loaded, x, y, 3), predict(again, x, y, 3))


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(ArtefactError, match="cannot be read"):
        WeightGenerator.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ArtefactError, match="cannot be read"):
        WeightGenerator.load(tmp_path)


def test_standard_input_makes_indicators_and_scales():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(1, 4, (50, 1), generator=generator).float()
    numbers = 100 + 5 * torch.randn(50, 2, generator=generator)
    pairs = torch.randint(0, 3, (50, 1), generator=generator).float()
    x = torch.cat([codes, pairs, numbers], 1)
    module = StandardInput(2, [4, 3]).learn(x)
    assert module.n_outputs == 3 + 1 + 2
    z = module(x)
    assert z.shape == (50, 6)
    assert torch.allclose(z.mean(0), torch.zeros(6), atol=0.1)
    unknown = x[:1].clone()
    unknown[0, 0] = 0
    assert (module(unknown)[0, :3] <= z[:, :3].min(0)[0] + 1e-6).all()
    twin = StandardInput(2, [4, 3])
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), z)


def test_of_many_columns_those_that_vary_most_are_kept():
    x = torch.randn(40, 90, generator=torch.Generator().manual_seed(0))
    x[:30, 5] = 0.0  # mostly one value
    x[:, 40:70] = (x[:, 40:70] > 1.5).float()  # rare
    module = StandardInput(90, max_outputs=59).learn(x)
    assert module(x).shape == (40, 59)
    assert module.columns.tolist() == [i for i in range(90) if i != 5 and not 40 <= i < 70]
    twin = StandardInput(90, max_outputs=59)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), module(x))


@pytest.mark.parametrize("n_classes", [0, 2, 7])
def test_synthetic_tables_are_finite_seeded_and_learnable(n_classes):
    x, y = draw_tables(Dice(3), 40, n_rows=120, n_features=7, n_classes=n_classes)
    again = draw_tables(Dice(3), 40, n_rows=120, n_features=7, n_classes=n_classes)
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert torch.isfinite(x).all()
    assert torch.isfinite(y).all()
    if n_classes:
        assert y.min() >= 0
        assert y.max() < n_classes
    z = standardise(x, *column_scales(x))
    targets = torch.nn.functional.one_hot(y, n_classes).float() if n_classes else y[..., None]
    skill = leave_one_out_skill(z, targets, (0.1,))[:, 0]
    assert skill.median() > 0.02  # the inputs tell of the target
    assert skill.median() < 0.95  # and are not the target


def test_shapes_stay_within_the_limits():
    dice = Dice(0)
    shapes = [draw_shape(dice) for _ in range(300)]
    assert max(s.n_context for s in shapes) == 1024
    assert min(s.n_context for s in shapes) >= 16
    assert max(s.n_features for s in shapes) <= TRAINED_FEATURES
    assert {s.n_classes for s in shapes} >= {0, 2, 3, 9}
    assert max(s.n_classes for s in shapes) <= TRAINED_CLASSES


def real_source(name: str, n_classes: int, n: int = 300, d: int = 9) -> TableSource:
    rng = np.random.default_rng(len(name))
    x = rng.normal(size=(n, d)).astype(np.float32)
    y = np.digitize(x[:, 0], [-0.5, 0.5]) if n_classes else x[:, 0] + x[:, 1]
    return TableSource(name, name, x, y.astype(np.int64 if n_classes else np.float32), n_classes)


def test_tasks_are_cut_from_real_tables():
    tables = RealTables([real_source("classes", 3), real_source("numbers", 0)])
    for n_classes in (0, 2, 3):
        batch = tables.draw(Dice(0), TaskShape(8, 64, 32, 6, n_classes))
        assert batch is not None
        assert batch.x.shape[1:] == (64, 6)
        assert batch.query_x.shape[1] == 64
        assert torch.allclose(batch.x.mean(1), torch.zeros(len(batch), 6), atol=0.1)
        if n_classes:
            assert set(batch.y.unique().tolist()) == set(range(n_classes))
        else:
            assert torch.allclose(batch.y.mean(1), torch.zeros(len(batch)), atol=1e-4)
    assert tables.draw(Dice(0), TaskShape(8, 64, 32, 20, 2)) is None  # no table has 20 columns


def test_a_dataset_becomes_a_source():
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"city": rng.choice(["a", "b", "c"], 80), "size": rng.normal(size=80), "same": 1.0})
    target = np.where(rng.random(80) < 0.95, np.where(frame["size"] > 0, "yes", "no"), "no")
    target[:3] = "rare"
    source = TableSource.of(as_dataset(frame, target), "g")
    assert source.n_classes == 2
    assert source.x.shape == (77, 4)  # three cities, one number; the rare class and the constant are gone
    assert source.is_usable


def test_query_rows_of_unseen_classes_do_not_count():
    x = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    y = torch.cat([torch.arange(20) % 2, torch.full((10,), 2)])[None]
    batch = GeneratorTasks.of(x, y, 20, 3)
    assert batch.query_weight.sum() == 0


def test_training_lowers_the_loss_and_resumes_where_it_stopped(tmp_path):
    options = {"cost": 4.0, "evaluate_every": 2, "seed": 3, "peak_rate": 3e-3, "warmup_fraction": 0.0}
    validation = {"choose": [draw_synthetic(Dice(9), TaskShape(24, 64, 64, 4, 2))]}
    rows: list[dict[str, float]] = []
    path = tmp_path / "run.safetensors"

    def train(n_steps: int, checkpoint=None, **more):
        return train_weight_generator(
            [real_source("classes", 3)], options=GenerationOptions(n_steps=n_steps, **options),
            generator=small_generator(),
            validation=validation, checkpoint=checkpoint, **more,
        )  # fmt: skip

    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 4:
            raise Stop

    with pytest.raises(Stop):
        train(6, path, report=stop)
    resumed = train(6, path, report=rows.append)
    straight = train(6)
    assert [row["step"] for row in rows] == [4, 6]
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(resumed.state_dict().values(), straight.state_dict().values(), strict=True)
    )
    before = torch.stack(generator_losses(small_generator(), validation["choose"][0])).mean()
    after = torch.stack(generator_losses(resumed, validation["choose"][0])).mean()
    assert after < before
    assert resumed.card["groups"] == ["classes"]
    with pytest.raises(ArtefactError, match="another training"):
        train_weight_generator([], options=GenerationOptions(n_steps=6, **options), generator=small_generator(),
                               checkpoint=path)  # fmt: skip


def test_training_ends_with_its_time():
    options = GenerationOptions(n_steps=10**9, seconds=0.2, cost=5.0, evaluate_every=10**9)
    generator = train_weight_generator([], options=options, generator=small_generator())
    assert generator.card["n_steps"] >= 1
    assert generator.card["seconds"] <= 5


def test_cut_tasks_needs_enough_rows():
    rng = np.random.default_rng(0)
    assert cut_tasks([real_source("short", 3, n=50)], TaskShape(1, 40, 20, 5, 3), rng) is None
