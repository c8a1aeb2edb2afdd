"""The race of births at use: generated weights against others on a hold-out, and the winner goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from autometa.exceptions import ArtefactError, FamilyUnavailable, TrainingDiverged
from autometa.gradient.fit import FitResult, Rows, TrainingPlan
from autometa.gradient.losses import Loss
from autometa.gradient.optimizers import OptimizerConfig
from autometa.gradient.schedules import Schedule
from autometa.nets.batched import descend, make_child
from autometa.nets.mlp import MLP
from autometa.nets.standard_input import StandardInput
from autometa.nets.weight_generator import MAX_CLASSES, MAX_FEATURES, MAX_ROWS, WeightGenerator

MIN_RACE_ROWS = 100
"""Below, a hold-out costs more than it tells: the generated birth with its own steps is taken without a race."""

OWN_STEPS, LEARNED, RANDOM = "generated, 5 own steps", "learned, few steps", "random"

_ADAM_STEPS = (10, 30)
_ADAM_RATE = 3e-3
_RANDOM_STEPS = 100
_MAX_TARGET = 8.0
_FOLDER = Path(__file__).resolve().parents[1] / "pretrained" / "weight_generator"

Train = Callable[[nn.Module, TrainingPlan, Rows | None], FitResult]
"""``train(net, plan, validation)`` trains in place by :func:`autometa.gradient.fit.fit_net` on the training rows."""


@dataclass(frozen=True)
class BirthReport:
    """Which birth a net had, and what it was chosen from.

    Parameters
    ----------
    winner : str
    losses : mapping of str to float
        Hold-out loss of each contestant of the race; empty where there was none.
    reason : str
        Why the winner was taken.
    seconds : float
        Of generation and race, without what came after.
    """

    winner: str
    losses: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0

    @property
    def init(self) -> str:
        """The birth alone: "random", "learned" or "generated"."""
        return self.winner.partition(",")[0]

    def __str__(self) -> str:
        told = ", ".join(f"{name} {loss:.4g}" for name, loss in sorted(self.losses.items(), key=lambda item: item[1]))
        return f"birth: {self.winner} ({self.reason}{f'; hold-out loss: {told}' if told else ''})"


@dataclass(frozen=True, eq=False)
class BirthTask:
    """What a race is about.

    Parameters
    ----------
    rows : Rows
        All training rows, in the layout of the net: category codes first.
    train, held : Tensor
        Positions to train on and to race on; ``held`` may be empty.
    category_sizes : sequence of int
    n_classes : int
        0 for regression.
    plan : TrainingPlan
        The predicted one, by which the winner goes on.
    judge : callable
        Loss on the hold-out.
    seed : int
    """

    rows: Rows
    train: Tensor
    held: Tensor
    category_sizes: Sequence[int]
    n_classes: int
    plan: TrainingPlan
    judge: Loss
    seed: int

    @property
    def has_race(self) -> bool:
        """Whether there are rows enough for a race."""
        return len(self.rows) >= MIN_RACE_ROWS and len(self.held) > 0

    @property
    def validation(self) -> Rows | None:
        return self.rows.take(self.held) if len(self.held) else None


@lru_cache(maxsize=1)
def shipped_generator() -> WeightGenerator:
    """The generator that comes with the library, read once a process.

    Raises
    ------
    FamilyUnavailable
        Its file is missing or damaged.
    """
    try:
        return WeightGenerator.load(_FOLDER)
    except ArtefactError as error:
        raise FamilyUnavailable(f"The shipped weight generator cannot be used: {error}") from error


def make_generated_net(n_columns: int, category_sizes: Sequence[int], n_outputs: int) -> MLP:
    """The net that is generated, behind its own input module; weights and scales are to be filled in."""
    table_input = StandardInput(n_columns - len(category_sizes), category_sizes, max_outputs=MAX_FEATURES)
    return make_child(table_input.n_outputs, n_outputs, table_input=table_input)


def generate_net(
    rows: Rows, category_sizes: Sequence[int], n_classes: int, *, seed: int = 0,
    generator: WeightGenerator | None = None,
) -> MLP:  # fmt: skip
    """A net whose weights were generated from rows and moved by the generated steps.

    A clear rule for tables beyond what the generator reads: of more than 150 columns (a category counts for each of its
    levels) the 150 that vary most are kept (:class:`autometa.nets.standard_input.StandardInput`); of more than 5,000
    rows a seeded sample is read. Sample weights are not looked at.

    Parameters
    ----------
    rows : Rows
    category_sizes : sequence of int
        Number of codes of each leading column.
    n_classes : int
        0 for regression, with a standardised target.
    seed : int, default 0
    generator : WeightGenerator or None
        ``None`` takes the shipped one.

    Raises
    ------
    FamilyUnavailable
        More than 32 classes, or the shipped generator cannot be read.
    """
    if n_classes > MAX_CLASSES:
        raise FamilyUnavailable(f"Weights can be generated for at most {MAX_CLASSES} classes. Got {n_classes}.")
    generator = generator or shipped_generator()
    if len(rows) > MAX_ROWS:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MAX_ROWS]
        rows = rows.take(chosen)
    net = make_generated_net(rows.x.shape[1], category_sizes, max(1, n_classes))
    table_input = net.get_submodule("table_input")
    assert isinstance(table_input, StandardInput)
    with torch.no_grad():
        inputs = table_input.learn(rows.x)(rows.x)[None]  # (1, N, F)
        target = rows.y if n_classes else rows.y.clamp(-_MAX_TARGET, _MAX_TARGET)
        birth = generator(inputs, target[None], n_classes=n_classes)
        inner = make_child(inputs.shape[2], max(1, n_classes))
        moved = descend(inner, birth.weights, inputs, target[None], rates=birth.rates)
        parameters = dict(net.named_parameters())
        for name, value in moved.items():
            parameters[name].copy_(value[0])
    return net.eval()


def fit_births(
    task: BirthTask, make_random: Callable[[], nn.Module], train: Train, *,
    others: Mapping[str, Callable[[], nn.Module]] | None = None, generator: WeightGenerator | None = None,
) -> tuple[nn.Module, FitResult, BirthReport]:  # fmt: skip
    """Race the births, let the winner go on by the predicted plan, and keep what is best on the hold-out.

    Contestants: the generated net after its own 5 steps, the same after 10 and 30 full-batch steps of Adam, the random
    net after the predicted schedule squeezed into about 100 steps, and ``others``. Then the winner is trained by the
    whole plan; where that does not help a generated net, it is undone and, if it was the one with its own steps,
    generated again from all rows. Below 100 rows there is no race.

    Parameters
    ----------
    task : BirthTask
    make_random : callable
        A net with random weights, the same each time.
    train : callable
        See :data:`Train`.
    others : mapping of str to callable, or None
        More contestants: each makes a net with its first few steps done.
    generator : WeightGenerator or None
        ``None`` takes the shipped one.
    """
    race = _Race(task, make_random, train, generator, time.perf_counter())
    if not task.has_race:
        try:
            net: nn.Module = race.generate(task.rows)
        except FamilyUnavailable as error:
            return race.go_on_random(str(error))
        return net, race.without_training(), race.report(OWN_STEPS, f"fewer than {MIN_RACE_ROWS} rows, no race")
    race.run(others or {})
    if race.winner == RANDOM:
        return race.go_on_random("lowest hold-out loss")
    return race.go_on()


class _Race:
    """The contestants and their losses on the hold-out."""

    def __init__(
        self, task: BirthTask, make_random: Callable[[], nn.Module], train: Train, generator: WeightGenerator | None,
        started: float,
    ) -> None:  # fmt: skip
        self.task, self.make_random, self.train, self.generator = task, make_random, train, generator
        self.started, self.seconds = started, 0.0
        self.nets: dict[str, nn.Module] = {}
        self.losses: dict[str, float] = {}
        self.why_not = ""

    def generate(self, rows: Rows) -> MLP:
        task = self.task
        return generate_net(rows, task.category_sizes, task.n_classes, seed=task.seed, generator=self.generator)

    def run(self, others: Mapping[str, Callable[[], nn.Module]]) -> None:
        """Let all contestants take their few steps."""
        rows = self.task.rows.take(self.task.train)
        try:
            self._enter(OWN_STEPS, lambda: self.generate(rows))
            for n_steps in _ADAM_STEPS:
                self._enter(f"generated, {n_steps} Adam steps", partial(self._moved, n_steps, len(rows)))
        except FamilyUnavailable as error:
            self.why_not += f"; {error}"
        for name, make in others.items():
            try:
                self._enter(name, make)
            except FamilyUnavailable as error:
                self.why_not += f"; {error}"
        self._enter(RANDOM, lambda: self._squeezed(len(rows)))
        self.seconds = time.perf_counter() - self.started

    def _enter(self, name: str, make: Callable[[], nn.Module]) -> None:
        """One contestant; one that diverges or predicts nonsense does not count."""
        try:
            net = make()
        except TrainingDiverged:
            return
        loss = self._judge(net)
        if loss == loss:
            self.nets[name], self.losses[name] = net, loss

    @torch.no_grad()
    def _judge(self, net: nn.Module) -> float:
        held = self.task.rows.take(self.task.held)
        return float(self.task.judge(net.eval()(held.x), held.y, held.weight))

    def _moved(self, n_steps: int, n_rows: int) -> nn.Module:
        """The generated net after some full-batch steps of Adam."""
        net = self._copy(OWN_STEPS)
        plan = TrainingPlan(Schedule("cosine", _ADAM_RATE), OptimizerConfig("adam"), n_steps, min(n_rows, MAX_ROWS))
        self.train(net, plan, None)
        return net

    def _copy(self, name: str) -> nn.Module:
        rows = self.task.rows
        net = make_generated_net(rows.x.shape[1], self.task.category_sizes, max(1, self.task.n_classes))
        net.load_state_dict(self.nets[name].state_dict())
        return net

    def _squeezed(self, n_rows: int) -> nn.Module:
        """The random net after the predicted schedule in about 100 steps."""
        plan, net = self.task.plan, self.make_random()
        n_epochs = min(plan.n_epochs, max(1, round(_RANDOM_STEPS * plan.batch_size / n_rows)))
        squeezed = TrainingPlan(plan.schedule, plan.optimizer, n_epochs, plan.batch_size)
        self.train(net, squeezed, None)
        return net

    @property
    def winner(self) -> str:
        """The contestant with the lowest loss; the random birth where none came home."""
        return min(self.losses, key=lambda name: self.losses[name]) if self.losses else RANDOM

    def go_on_random(self, reason: str) -> tuple[nn.Module, FitResult, BirthReport]:
        """The random birth by the whole plan; a generated net that is still better takes its place."""
        net = self.make_random()
        result = self.train(net, self.task.plan, self.task.validation)
        rivals = {name: loss for name, loss in self.losses.items() if name != RANDOM}
        best = min(rivals, key=lambda name: rivals[name], default="")
        if best and rivals[best] < self._judge(net):
            return (
                self.nets[best],
                self.without_training(),
                self.report(best, "better than the random birth in the end"),
            )
        return net, result, self.report(RANDOM, reason + self.why_not)

    def go_on(self) -> tuple[nn.Module, FitResult, BirthReport]:
        """The winner by the whole plan, undone where that does not help."""
        name, before = self.winner, self.nets[self.winner]
        kept = {key: value.clone() for key, value in before.state_dict().items()}
        try:
            result = self.train(before, self.task.plan, self.task.validation)
            after = self._judge(before)
        except TrainingDiverged:
            after = float("nan")
        if after < self.losses[name]:
            return before, result, self.report(name, f"lowest hold-out loss, {after:.4g} after the whole plan")
        before.load_state_dict(kept)
        if name == OWN_STEPS:
            before = self.generate(self.task.rows)
        return before, self.without_training(), self.report(name, "lowest hold-out loss, more steps did not help")

    def report(self, winner: str, reason: str) -> BirthReport:
        seconds = self.seconds or time.perf_counter() - self.started
        return BirthReport(winner, dict(self.losses), reason, seconds)

    def without_training(self) -> FitResult:
        """The result of a net that was generated and not trained."""
        seconds = time.perf_counter() - self.started
        return FitResult((), (), 0, 0, self.task.plan.batch_size, "cpu", "generated", seconds)
