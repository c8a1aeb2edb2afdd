"""Training a weight generator on synthetic tables and on tasks cut from real ones.

First order throughout: the loss after the generated steps sees the steps as constants (Finn et al., 2017).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autometa.exceptions import ArtefactError, TrainingDiverged
from autometa.gradient.optimizers import FlatParameters, Optimizer, OptimizerConfig
from autometa.gradient.schedules import Schedule
from autometa.meta_training.generation_tasks import GeneratorTasks, RealTables, TableSource, draw_shape, draw_synthetic
from autometa.meta_training.synthetic_tables import Dice
from autometa.nets.batched import call_batched, descend, make_child
from autometa.nets.weight_generator import WeightGenerator

_FORMAT = "autometa-generation-1"
_MAX_BAD_STEPS = 20
_HUBER = 2.0


@dataclass(frozen=True)
class GenerationOptions:
    """Choices of :func:`train_weight_generator`.

    Parameters
    ----------
    n_steps : int
    seconds : float or None
        Wall-clock seconds of training after which the schedule is at its end, whatever ``n_steps``; those of an
        earlier, interrupted run count.
    peak_rate, weight_decay : float
        Of AdamW.
    warmup_fraction : float
    real_share : float
        Share of the batches that are cut from real tables.
    step_weight : float
        Weight of the loss after the generated steps; that of the generated weights themselves has the rest.
    average : float
        Decay of the moving average of the weights, which is what is kept.
    cost : float
        About the CPU milliseconds of one step, which say how many tasks it has.
    evaluate_every : int
        Steps between evaluations and checkpoints.
    seed : int
    """

    n_steps: int = 4_000
    seconds: float | None = None
    peak_rate: float = 1.5e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.02
    real_share: float = 0.5
    step_weight: float = 0.4
    average: float = 0.995
    cost: float = 600.0
    evaluate_every: int = 200
    seed: int = 0


@dataclass
class _State:
    """All that a checkpoint holds beside tensors."""

    step: int = 0
    n_updates: int = 0
    n_tasks: int = 0
    seconds: float = 0.0
    n_bad: int = 0
    best_loss: float = float("inf")
    log: list[dict[str, float]] = field(default_factory=list)


def generator_losses(
    generator: WeightGenerator, batch: GeneratorTasks, *, robust: bool = True
) -> tuple[Tensor, Tensor]:
    """Loss of each task's query rows with the generated weights, and after the generated steps; (B,) each.

    Cross-entropy; for a numeric target the squared error, linear beyond two standard deviations where ``robust``.
    """
    birth = generator(batch.x, batch.y, n_classes=batch.n_classes)
    net = make_child(batch.x.shape[2], max(1, batch.n_classes))
    moved = descend(net, birth.weights, batch.x, batch.y, rates=birth.rates)
    before = _query_losses(call_batched(net, birth.weights, batch.query_x), batch, robust)
    return before, _query_losses(call_batched(net, moved, batch.query_x), batch, robust)


def _query_losses(output: Tensor, batch: GeneratorTasks, robust: bool) -> Tensor:
    if batch.n_classes:
        flat = torch.nn.functional.cross_entropy(output.flatten(0, 1), batch.query_y.flatten(), reduction="none")
        rows = flat.view_as(batch.query_weight)
    else:
        error = (output[..., 0] - batch.query_y).abs()
        rows = error.square()
        if robust:
            rows = torch.where(error < _HUBER, rows, 2 * _HUBER * error - _HUBER**2)
    return (rows * batch.query_weight).sum(1) / batch.query_weight.sum(1).clamp_min(1)


def train_weight_generator(
    sources: Sequence[TableSource],
    *,
    options: GenerationOptions | None = None,
    validation: Mapping[str, Sequence[GeneratorTasks]] | None = None,
    checkpoint: str | Path | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
    generator: WeightGenerator | None = None,
) -> WeightGenerator:
    """Train a weight generator, or go on with one.

    Parameters
    ----------
    sources : sequence of TableSource
        Real tables; may be empty, then all tasks are synthetic.
    options : GenerationOptions or None
    validation : mapping of str to sequence of GeneratorTasks, or None
        Judged now and then with the averaged weights. Where there is a set "choose", the averaged weights with its
        lowest loss after the steps are answered, else the last ones.
    checkpoint : path or None
        File that is written at each evaluation and resumed from if it is there.
    report : callable or None
        Told the row of the log at each evaluation.
    generator : WeightGenerator or None
        ``None`` makes one of the default size from the seed.

    Raises
    ------
    TrainingDiverged
        Twenty steps in a row had a gradient that was not finite.
    ArtefactError
        The checkpoint belongs to another training.
    """
    run = _Run(generator or WeightGenerator(), options or GenerationOptions(), RealTables(sources), validation or {})
    if checkpoint is not None and Path(checkpoint).exists():
        run.resume(Path(checkpoint))
    while run.fraction < 1:
        run.step()
        if run.state.step % run.options.evaluate_every == 0 or run.fraction >= 1:
            row = run.evaluate()
            if report is not None:
                report(row)
            if checkpoint is not None:
                run.save(Path(checkpoint))
    return run.finish(sources)


class _Run:
    """The state of one training; all weights as one vector."""

    def __init__(
        self, generator: WeightGenerator, options: GenerationOptions, tables: RealTables,
        validation: Mapping[str, Sequence[GeneratorTasks]],
    ) -> None:  # fmt: skip
        self.generator, self.options, self.tables, self.validation = generator, options, tables, validation
        self.schedule = Schedule("cosine", options.peak_rate, options.warmup_fraction, 0.01)
        self.optimizer = Optimizer(OptimizerConfig("adamw", options.weight_decay))
        self.flat = FlatParameters(generator)
        self.dice = Dice(options.seed)
        self.average, self.best = self.flat.weights.clone(), self.flat.weights.clone()  # (P,)
        self.state = _State()
        self._recent: list[tuple[float, float]] = []

    @property
    def fraction(self) -> float:
        """How far the training has come, in [0, 1]."""
        by_time = self.state.seconds / self.options.seconds if self.options.seconds else 0.0
        return min(1.0, max(self.state.step / self.options.n_steps, by_time))

    def step(self) -> None:
        """One batch, one update."""
        started = time.perf_counter()
        batch = self._draw()
        self.flat.gradient.zero_()
        before, after = generator_losses(self.generator, batch)
        weight = self.options.step_weight
        loss = ((1 - weight) * before + weight * after).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self._apply()
        self._recent.append((float(before.mean().detach()), float(after.mean().detach())))
        self.state.step += 1
        self.state.n_tasks += len(batch)
        self.state.seconds += time.perf_counter() - started

    def _apply(self) -> None:
        """Move the weights, unless the gradient is not finite, and their average."""
        finite = bool(torch.isfinite(self.flat.gradient).all())
        self.state.n_bad = 0 if finite else self.state.n_bad + 1
        if self.state.n_bad >= _MAX_BAD_STEPS:
            raise TrainingDiverged(f"The gradient was not finite in {_MAX_BAD_STEPS} steps in a row. Lower peak_rate.")
        if finite:
            self.flat.clip_gradient(1.0)
            self.optimizer.step(self.flat.weights, self.flat.gradient, self.schedule.rate(self.fraction))
            self.state.n_updates = self.optimizer.n_steps
        decay = min(self.options.average, 1 - 1 / (self.state.step / 5 + 1))
        self.average.lerp_(self.flat.weights, 1 - decay)

    def _draw(self) -> GeneratorTasks:
        """The next batch; a synthetic one where no real table has the shape."""
        while True:
            shape = draw_shape(self.dice, self.options.cost)
            real = self.tables.sources and self.dice.chance(self.options.real_share)
            batch = self.tables.draw(self.dice, shape) if real else None
            batch = batch or draw_synthetic(self.dice, shape)
            if len(batch) >= 2:
                return batch

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Losses of the averaged weights on the validation sets; keeps the best."""
        recent = torch.tensor(self._recent or [(float("nan"),) * 2]).mean(0).tolist()
        self._recent = []
        row = {"step": self.state.step, "seconds": round(self.state.seconds, 1), "train_0": recent[0],
               "train_5": recent[1], "fraction": round(self.fraction, 4)}  # fmt: skip
        current = self.flat.weights.clone()
        self.flat.weights.copy_(self.average)
        for name, batches in self.validation.items():
            found = [torch.stack(generator_losses(self.generator, batch, robust=False), 1) for batch in batches]
            before, after = torch.cat(found).mean(0).tolist()
            row |= {f"{name}_0": before, f"{name}_5": after}
        self.flat.weights.copy_(current)
        if row.get("choose_5", -1.0) < self.state.best_loss:
            self.state.best_loss = row.get("choose_5", float("inf"))
            self.best.copy_(self.average)
        self.state.log.append({name: round(value, 5) for name, value in row.items()})
        return row

    def finish(self, sources: Sequence[TableSource]) -> WeightGenerator:
        """The generator with its best weights and a card of how it came to them."""
        with torch.no_grad():
            self.flat.weights.copy_(self.best)
        self.flat.release()
        self.generator.card = {
            "options": asdict(self.options), "n_steps": self.state.step, "n_tasks": self.state.n_tasks,
            "seconds": round(self.state.seconds), "log": self.state.log, "n_tables": len(sources),
            "groups": sorted({source.group for source in sources}),
        }  # fmt: skip
        return self.generator.eval()

    def save(self, path: Path) -> None:
        """Write a checkpoint so that the file is always a whole one."""
        header = {"format": _FORMAT, "state": json.dumps(asdict(self.state)), "signature": self._signature()}
        tensors = {f"moment.{name}": value for name, value in self.optimizer.moments.items()}
        tensors |= {"weights": self.flat.weights, "average": self.average, "best": self.best}
        tensors["dice"] = self.dice.generator.get_state()
        path.parent.mkdir(parents=True, exist_ok=True)
        neighbour = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_file(tensors, neighbour, metadata=header)
        os.replace(neighbour, path)

    def resume(self, path: Path) -> None:
        """Go on where :meth:`save` was called."""
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != _FORMAT or header["signature"] != self._signature():
            raise ArtefactError(f"The checkpoint {str(path)!r} belongs to another training. Delete the file.")
        self.state = _State(**json.loads(header["state"]))
        self.dice.generator.set_state(tensors.pop("dice"))
        with torch.no_grad():
            self.flat.weights.copy_(tensors.pop("weights"))
        self.average, self.best = tensors.pop("average"), tensors.pop("best")
        self.optimizer.moments = {name.removeprefix("moment."): value for name, value in tensors.items()}
        self.optimizer.n_steps = self.state.n_updates

    def _signature(self) -> str:
        """What must be equal for a checkpoint to be continued; the length of the training may change."""
        options = {name: value for name, value in asdict(self.options).items() if name not in {"n_steps", "seconds"}}
        return json.dumps({**options, **self.generator.settings, "sources": [s.name for s in self.tables.sources]})
