"""The gradient loop and its parts, on problems whose answer is known."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autometa.exceptions import ArtefactError, TrainingDiverged
from autometa.gradient import devices, fit, losses
from autometa.gradient.devices import choose_device, is_out_of_memory, torch_threads
from autometa.gradient.fit import Rows, TrainingPlan, fit_net
from autometa.gradient.initialization import initialize
from autometa.gradient.optimizers import OPTIMIZERS, FlatParameters, OptimizerConfig, make_optimizer
from autometa.gradient.schedules import SCHEDULES, Schedule
from autometa.nets.mlp import MLP, TableInput

ADAM = OptimizerConfig("adam")


def make_rows(n: int = 96, seed: int = 0) -> Rows:
    """XOR of the signs of two columns."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return Rows(x, ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long())


def make_net(seed: int = 0, dropout: float = 0.2) -> MLP:
    return initialize(lambda: MLP(TableInput(2), 2, hidden_sizes=(16,), dropout=dropout), seed=seed)


def make_plan(n_epochs: int = 6, rate: float = 0.01, **changes) -> TrainingPlan:
    settings = {"schedule": Schedule("cosine", rate), "optimizer": ADAM, "batch_size": 16, **changes}
    return TrainingPlan(n_epochs=n_epochs, **settings)


def train(net, **changes):
    options = {"plan": make_plan(), "loss": losses.classification_loss(), "validation": make_rows(40, 9), **changes}
    return fit_net(net, make_rows(), **options)


def weights(net) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


# schedules


@given(
    name=st.sampled_from(SCHEDULES),
    peak=st.floats(1e-6, 1.0),
    warmup=st.floats(0.0, 0.9),
    floor=st.floats(0.0, 1.0),
    t=st.floats(0.0, 1.0),
)
def test_rate_lies_between_floor_and_peak(name, peak, warmup, floor, t):
    schedule = Schedule(name, peak, warmup, floor)
    assert schedule.floor <= schedule.rate(t) <= schedule.peak


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("constant", 2.0), {0.0: 2.0, 0.3: 2.0, 1.0: 2.0}),
        (Schedule("constant", 2.0, 0.5, 0.5), {0.0: 1.0, 0.25: 1.5, 0.5: 2.0, 1.0: 2.0}),
        (Schedule("cosine", 2.0), {0.0: 2.0, 0.5: 1.0, 1.0: 0.0}),
        (Schedule("cosine", 2.0, 0.2, 0.1), {0.0: 0.2, 0.2: 2.0, 0.6: 1.1, 1.0: 0.2}),
        (Schedule("one_cycle", 2.0), {0.0: 0.0, 0.15: 1.0, 0.3: 2.0, 0.65: 1.0, 1.0: 0.0}),
        (Schedule("coslog4", 2.0), {0.0: 0.0, 1 / 15: 0.0, 3 / 15: 0.0, 7 / 15: 0.0, 1.0: 0.0}),
        (Schedule("coslog4", 2.0), {(2**0.5 - 1) / 15: 2.0, (2**3.5 - 1) / 15: 2.0}),
    ],
)
def test_known_rates(schedule, expected):
    for t, rate in expected.items():
        assert schedule.rate(t) == pytest.approx(rate, abs=1e-9)


def test_rates_outside_the_training_are_those_of_its_ends():
    schedule = Schedule("cosine", 1.0, 0.0, 0.1)
    assert schedule.rate(-1.0) == schedule.rate(0.0)
    assert schedule.rate(2.0) == schedule.rate(1.0)


@pytest.mark.parametrize(
    "arguments", [("linear", 1.0), ("cosine", 0.0), ("cosine", float("nan")), ("cosine", 1, 1.0), ("cosine", 1, 0, 2)]
)
def test_bad_schedules(arguments):
    with pytest.raises(ValueError, match="Got"):
        Schedule(*arguments)


def test_schedules_need_no_torch():
    code = "import sys, autometa.gradient.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# optimisers


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=15, deadline=None)
@given(start=st.lists(st.floats(-2, 2), min_size=2, max_size=4), momentum=st.sampled_from([0.0, 0.9]))
def test_each_optimizer_descends_a_quadratic(name, start, momentum):
    target = torch.ones(len(start))
    x, optimizer = torch.tensor(start), make_optimizer(name, momentum=momentum)
    before = float((x - target).square().sum())
    for step in range(300):
        optimizer.step(x, 2 * (x - target), rate=0.05 * (1 - step / 300))
    assert float((x - target).square().sum()) <= max(1e-3, 0.01 * before)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_rules_are_those_of_torch(name, decay):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.ones(5), torch.nn.Parameter(torch.ones(5))
    optimizer = make_optimizer(name, weight_decay=decay, momentum=0.8)
    options = {"lr": 0.01, "weight_decay": decay}
    reference = {
        "sgd": lambda: torch.optim.SGD([theirs], momentum=0.8, nesterov=True, **options),
        "adam": lambda: torch.optim.Adam([theirs], betas=(0.8, 0.99), **options),
        "adamw": lambda: torch.optim.AdamW([theirs], betas=(0.8, 0.99), **options),
        "rmsprop": lambda: torch.optim.RMSprop([theirs], **options),
    }[name]()
    for _ in range(400 if name == "rmsprop" else 10):
        gradient = torch.randn(5, generator=generator)
        theirs.grad = gradient.clone()
        reference.step()
        optimizer.step(ours, gradient, 0.01)
        if name == "rmsprop" and optimizer.n_steps <= 390:  # ours corrects the start of the average
            ours.copy_(theirs.detach())
            continue
    torch.testing.assert_close(ours, theirs.detach(), rtol=2e-2 if name == "rmsprop" else 1e-5, atol=1e-3)


def test_decay_of_adamw_is_decoupled():
    weights_, zero = torch.ones(3), torch.zeros(3)
    make_optimizer("adamw", weight_decay=0.1).step(weights_, zero.clone(), rate=0.5)
    torch.testing.assert_close(weights_, torch.full((3,), 0.95))


def test_flat_parameters_are_views_until_released():
    net = make_net()
    before = weights(net)
    flat = FlatParameters(net)
    assert torch.equal(flat.weights, before)
    net(make_rows().x).square().sum().backward()
    assert float(flat.gradient.abs().sum()) > 0
    flat.clip_gradient(0.5)
    assert float(flat.gradient.norm()) == pytest.approx(0.5, abs=1e-5)
    flat.weights.zero_()
    assert float(weights(net).abs().sum()) == 0
    flat.release()
    flat.weights.fill_(1.0)
    assert float(weights(net).abs().sum()) == 0


@pytest.mark.parametrize("arguments", [("lbfgs",), ("sgd", -1.0), ("sgd", 0.0, 1.0)])
def test_bad_optimizers(arguments):
    with pytest.raises(ValueError, match="Got"):
        OptimizerConfig(*arguments)


# births


def test_initialization_depends_on_the_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = weights(make_net(seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(first, weights(make_net(seed=1)))
    assert not torch.equal(first, weights(make_net(seed=2)))


def test_unknown_birth():
    with pytest.raises(ValueError, match="init must be one of"):
        initialize(make_net, init="stork")


# the loop


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_and_schedule_lowers_the_loss(optimizer, schedule):
    rate = 0.2 if optimizer == "sgd" else 0.02
    plan = make_plan(15, schedule=Schedule(schedule, rate), optimizer=OptimizerConfig(optimizer))
    result = train(make_net(dropout=0.0), plan=plan)
    assert result.train_loss[-1] < 0.9 * result.train_loss[0]
    assert result.n_epochs == 15
    assert result.n_steps == 15 * 6
    assert result.stop_reason == "n_epochs"


def test_same_seed_same_weights_and_global_state_untouched():
    first, second, third = make_net(), make_net(), make_net()
    train(first, seed=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    train(second, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    train(third, seed=4)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(third))


def test_early_stopping_keeps_the_best_weights():
    validation = Rows(make_rows(40, 9).x, 1 - make_rows(40, 9).y)  # the better the fit, the worse the hold-out
    net, plan = make_net(), make_plan(50, rate=0.05, patience=4)
    result = train(net, plan=plan, validation=validation)
    assert result.stop_reason == "patience"
    assert result.n_epochs == result.best_epoch + 4
    with torch.no_grad():
        kept = float(losses.classification_loss()(net(validation.x), validation.y, None))
    assert kept == pytest.approx(min(result.validation_loss), rel=1e-6)


def test_without_hold_out_the_last_weights_are_kept():
    result = train(make_net(), plan=make_plan(4, patience=2), validation=None)
    assert (result.best_epoch, result.n_epochs, result.validation_loss) == (4, 4, ())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_training_equals_an_uninterrupted_one(tmp_path, optimizer):
    plan = make_plan(8, optimizer=OptimizerConfig(optimizer))
    whole, parts = make_net(), make_net()
    expected = train(whole, plan=plan)
    asked = iter([False, False, True])
    stopped = train(parts, plan=plan, checkpoint=tmp_path / "c.st", should_stop=lambda: next(asked))
    assert (stopped.stop_reason, stopped.n_epochs) == ("stopped", 3)
    resumed = make_net(seed=99)
    result = train(resumed, plan=plan, checkpoint=tmp_path / "c.st")
    assert torch.equal(weights(whole), weights(resumed))
    assert result.train_loss == expected.train_loss
    assert result.validation_loss == expected.validation_loss
    again = train(make_net(seed=98), plan=plan, checkpoint=tmp_path / "c.st")
    assert (again.stop_reason, again.n_steps) == ("n_epochs", expected.n_steps)
    assert [path.name for path in tmp_path.iterdir()] == ["c.st"]


def test_training_cut_within_an_epoch_resumes_from_the_epoch_before(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "_CHECK_EVERY_STEPS", 1)
    asked = iter([False] * 8 + [True])
    whole, parts = make_net(), make_net()
    train(whole)
    stopped = train(parts, checkpoint=tmp_path / "c.st", should_stop=lambda: next(asked))
    assert stopped.n_epochs == 1
    train(parts, checkpoint=tmp_path / "c.st")
    assert torch.equal(weights(whole), weights(parts))


def test_foreign_and_damaged_checkpoints(tmp_path):
    path = tmp_path / "c.st"
    train(make_net(), checkpoint=path)
    with pytest.raises(ArtefactError, match="belongs to another training"):
        train(make_net(), checkpoint=path, seed=1)
    path.write_bytes(b"nonsense")
    with pytest.raises(ArtefactError, match="cannot be read"):
        train(make_net(), checkpoint=path)


def test_nan_is_a_named_failure():
    rows = make_rows()
    rows.x[3, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"epoch 1 \(optimizer 'adam', peak learning rate 0.01\)"):
        fit_net(make_net(), rows, plan=make_plan(), loss=losses.classification_loss())
    with pytest.raises(TrainingDiverged):
        train(make_net(), loss=lambda output, y, weight: output.sum() * float("inf"))


def test_out_of_memory_halves_the_batch_and_every_row_is_still_seen(monkeypatch):
    seen = []

    class Hungry(MLP):
        def forward(self, x):
            if self.training and len(x) > 12:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            if self.training:
                seen.append(x[:, 0].clone())
            return super().forward(x)

    net = initialize(lambda: Hungry(TableInput(2), 2, hidden_sizes=(8,)))
    result = train(net, plan=make_plan(2, batch_size=48))
    assert result.batch_size == 12
    assert len(torch.cat(seen).unique()) == 96
    assert sum(len(part) for part in seen) == 2 * 96


def test_out_of_memory_with_one_row_and_other_errors_are_raised():
    class Broken(MLP):
        error: Exception

        def forward(self, x):
            raise self.error

    net = initialize(lambda: Broken(TableInput(2), 2))
    net.error = torch.OutOfMemoryError("no room")
    with pytest.raises(torch.OutOfMemoryError):
        train(net)
    net.error = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(net)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def test_validation_survives_out_of_memory():
    class Hungry(MLP):
        def forward(self, x):
            if not self.training and len(x) > 10:
                raise torch.OutOfMemoryError("simulated")
            return super().forward(x)

    hungry, plain = (initialize(lambda c=cls: c(TableInput(2), 2, hidden_sizes=(8,))) for cls in (Hungry, MLP))
    np.testing.assert_allclose(train(hungry).validation_loss, train(plain).validation_loss, rtol=1e-5)


def test_time_limit_leaves_something_learned():
    net = make_net()
    before = weights(net)
    result = train(net, plan=make_plan(1000), time_limit_seconds=0.0)
    assert result.stop_reason == "time_limit"
    assert result.n_steps == 1
    assert not torch.equal(before, weights(net))


def test_rows_of_weight_zero_do_not_count():
    rows, noise = make_rows(), make_rows(96, seed=4)
    both = Rows(torch.cat([rows.x, noise.x]), torch.cat([rows.y, 1 - noise.y]), torch.arange(192).lt(96).float())
    net = make_net(dropout=0.0)
    fit_net(net, both, plan=make_plan(40, rate=0.03), loss=losses.classification_loss())
    with torch.no_grad():
        assert float((net(rows.x).argmax(1) == rows.y).float().mean()) > 0.9


def test_losses_of_an_ensemble():
    output, y = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1, 0])
    per_member = torch.stack([losses.classification_loss()(output[:, k], y, None) for k in range(3)])
    torch.testing.assert_close(losses.classification_loss()(output, y, None), per_member.mean())
    weight = torch.ones(6)
    torch.testing.assert_close(losses.classification_loss(0.1)(output, y, weight),
                               losses.classification_loss(0.1)(output, y, None))  # fmt: skip
    # The loss is convex: the averaged prediction is never worse than the members on average.
    assert losses.classification_validation_loss(output, y, None) <= per_member.mean()
    values, target = output[..., :1], torch.randn(6, generator=torch.Generator().manual_seed(1))
    assert losses.regression_validation_loss(values, target, None) <= losses.regression_loss()(values, target, None)


def test_bad_plans():
    for changes in ({"n_epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"max_gradient_norm": 0.0}):
        with pytest.raises(ValueError, match="Got"):
            make_plan(**changes)
    with pytest.raises(ValueError, match="rows are empty"):
        fit_net(make_net(), make_rows().take(slice(0, 0)), plan=make_plan(), loss=losses.classification_loss())


# devices


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_device_report_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_hidden_gpu", lambda: "")
    assert str(choose_device()) == "cpu (CPU): no GPU was found"
    monkeypatch.setattr(devices, "_hidden_gpu", lambda: "an NVIDIA GPU is there and unused: no CUDA")
    assert "there and unused" in choose_device().reason
    with pytest.raises(ValueError, match="cannot be used: an NVIDIA GPU is there"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="device must be one of"):
        choose_device("tpu")


def test_device_report_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Big GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    small, large = choose_device(n_rows=100), choose_device(n_rows=1_000_000)
    assert (small.device, large.device) == ("cpu", "cuda")
    assert "Big GPU is there and unused" in small.reason
    assert "Big GPU is there and unused" in choose_device("cpu").reason
    assert choose_device("cuda:0", n_rows=10).device == "cuda:0"
    with pytest.raises(ValueError, match="does not exist"):
        choose_device("cuda:3")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize(("mixed", "tolerance"), [(False, 1e-3), (True, 5e-2)])
def test_gpu_equals_cpu(mixed, tolerance):
    on_cpu, on_gpu = make_net(dropout=0.0), make_net(dropout=0.0)
    plan = make_plan(10, mixed_precision=mixed)
    expected, result = train(on_cpu, plan=plan), train(on_gpu, plan=plan, device="cuda")
    assert result.device == "cuda"
    np.testing.assert_allclose(result.validation_loss, expected.validation_loss, rtol=tolerance)
    assert next(on_gpu.parameters()).device.type == "cpu"
