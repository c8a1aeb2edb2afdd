"""The textbook check of learned births: sine waves of random amplitude and phase, 5 and 10 shots.

Set-up of Finn et al. (Model-agnostic meta-learning, 2017), section 5.1: amplitude in [0.1, 5], phase in [0, pi], x in
[-5, 5], a 40-40 ReLU net, one inner step at 0.01 in training, 25 tasks a meta-step. Their baseline is pretrained on all
waves together and then fine-tuned on the shots; here it gets the best rate of four on the test waves themselves.
About four CPU minutes:

    OMP_NUM_THREADS=1 .venv/bin/python experiments/initialisation/sinusoid.py
"""

from __future__ import annotations

import math
import time

import torch

from autometa.gradient.fit import Rows
from autometa.gradient.initialization import initialize
from autometa.gradient.inner_loop import TaskBatch, adapt_batch, query_losses
from autometa.gradient.learned import Initialisation
from autometa.gradient.losses import regression_loss
from autometa.gradient.optimizers import FlatParameters, make_optimizer
from autometa.meta_training.initialisation import MetaTrainingPlan, TaskSampler, meta_train_initialisation
from autometa.nets.mlp import MLP, TableInput

N_TEST_TASKS = 600
STEPS = (0, 1, 2, 5, 10)
LOSS = regression_loss()
METHODS = {
    "maml": MetaTrainingPlan(n_meta_steps=7_000, n_inner_steps=1, inner_rate=0.01, meta_rate=2e-3),
    "fomaml": MetaTrainingPlan(n_meta_steps=7_000, n_inner_steps=1, inner_rate=0.01, meta_rate=2e-3),
    "reptile": MetaTrainingPlan(n_meta_steps=5_000, n_inner_steps=5, inner_rate=0.02, meta_rate=1e-3),
    "anil": MetaTrainingPlan(n_meta_steps=5_000, n_inner_steps=1, inner_rate=0.01, meta_rate=2e-3),
    "meta_sgd": MetaTrainingPlan(n_meta_steps=5_000, n_inner_steps=1, inner_rate=0.01, meta_rate=2e-3),
}


def waves(n_shots: int, n_query: int, n_tasks: int = 25) -> TaskSampler:
    """A sampler of sine waves."""

    def draw(generator: torch.Generator) -> TaskBatch:
        amplitude = 0.1 + 4.9 * torch.rand(n_tasks, 1, generator=generator)
        phase = math.pi * torch.rand(n_tasks, 1, generator=generator)
        x = 10 * torch.rand(n_tasks, n_shots + n_query, generator=generator) - 5
        y = amplitude * torch.sin(x - phase)
        support, query = (slice(0, n_shots), slice(n_shots, None))
        return TaskBatch(Rows(x[:, support, None], y[:, support]), Rows(x[:, query, None], y[:, query]))

    return draw


def make_net() -> MLP:
    """The net of the paper."""
    return initialize(lambda: MLP(TableInput(1), 1, hidden_sizes=(40, 40), activation="relu"), seed=0)


def pretrained(n_steps: int = 6_000) -> Initialisation:
    """The baseline: one net for all waves."""
    net, draw, generator = make_net(), waves(10, 0), torch.Generator().manual_seed(1)
    flat, optimizer = FlatParameters(net), make_optimizer("adam")
    for step in range(n_steps):
        rows = draw(generator).support
        flat.gradient.zero_()
        LOSS(net(rows.x.flatten(0, 1)), rows.y.flatten(), None).backward()
        optimizer.step(flat.weights, flat.gradient, 1e-3 * (1 - step / n_steps))
    flat.release()
    weights = {name: value.detach() for name, value in net.named_parameters()}
    return Initialisation(weights, {name: torch.tensor(0.01) for name in weights}, 1, "pretrained")


def errors(birth: Initialisation, n_shots: int, rate: float | None = None) -> list[float]:
    """Mean squared error on the rest of each test wave after 0, 1, 2, 5 and 10 steps."""
    tasks = waves(n_shots, 100, N_TEST_TASKS)(torch.Generator().manual_seed(99))
    rates = birth.rates if rate is None else {name: torch.tensor(rate) for name in birth.weights}
    found = []
    for n_steps in STEPS:
        weights = adapt_batch(make_net(), birth.weights, tasks, loss=LOSS, rates=rates, n_steps=n_steps)
        found.append(float(query_losses(make_net(), weights, tasks, loss=LOSS).mean()))
    return found


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'birth':12} shots  " + "  ".join(f"step {n:2}" for n in STEPS) + "  CPU seconds of training", flush=True)
    baseline = pretrained()
    for n_shots in (5, 10):
        rows = {rate: errors(baseline, n_shots, rate) for rate in (0.001, 0.003, 0.01, 0.02)}
        best = [min(row[i] for row in rows.values()) for i in range(len(STEPS))]
        print(f"{'pretrained':12} {n_shots:5}  " + "  ".join(f"{value:7.3f}" for value in best), flush=True)
    for method, plan in METHODS.items():
        started = time.process_time()
        birth = meta_train_initialisation(waves(10, 10), method, net=make_net(), loss=LOSS, plan=plan)
        seconds = time.process_time() - started
        for n_shots in (5, 10):
            row = "  ".join(f"{value:7.3f}" for value in errors(birth, n_shots))
            print(f"{method:12} {n_shots:5}  {row}  {seconds:.0f}", flush=True)


if __name__ == "__main__":
    main()
