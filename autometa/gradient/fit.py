"""``fit_net``: the one gradient loop of the library."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from autometa.exceptions import TrainingDiverged
from autometa.gradient.checkpoints import Progress, load_checkpoint, save_checkpoint
from autometa.gradient.devices import is_out_of_memory
from autometa.gradient.losses import Loss
from autometa.gradient.optimizers import FlatParameters, Optimizer, OptimizerConfig
from autometa.gradient.schedules import Schedule

_PREDICT_ROWS = 8_192
_CHECK_EVERY_STEPS = 32
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Rows:
    """Training or hold-out rows.

    Parameters
    ----------
    x : Tensor of shape (N, ...)
    y : Tensor of shape (N,)
    weight : Tensor of shape (N,) or None
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor | slice) -> Rows:
        """Some of the rows."""
        return Rows(self.x[index], self.y[index], None if self.weight is None else self.weight[index])

    def to(self, device: str) -> Rows:
        """The rows on a device."""
        return Rows(self.x.to(device), self.y.to(device), None if self.weight is None else self.weight.to(device))


@dataclass(frozen=True)
class TrainingPlan:
    """How a net is to be trained.

    Parameters
    ----------
    schedule : Schedule
        Learning rate over the training of ``n_epochs``.
    optimizer : OptimizerConfig
    n_epochs : int, default 100
    batch_size : int, default 128
        Rows a step; an epoch is cut into steps of nearly equal size.
    patience : int or None, default None
        Epochs without a better hold-out loss after which training stops; ``None`` never stops early.
    max_gradient_norm : float, default 1.0
    mixed_precision : bool, default True
        bfloat16 arithmetic on GPUs that have it; no effect elsewhere.
    """

    schedule: Schedule
    optimizer: OptimizerConfig
    n_epochs: int = 100
    batch_size: int = 128
    patience: int | None = None
    max_gradient_norm: float = 1.0
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        for name in ("n_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Got {getattr(self, name)!r} instead.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, or None. Got {self.patience!r} instead.")
        if not self.max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm must be positive. Got {self.max_gradient_norm!r} instead.")


@dataclass(frozen=True)
class FitResult:
    """What happened in a training.

    Parameters
    ----------
    train_loss, validation_loss : tuple of float
        One value per finished epoch; the second is empty without a hold-out.
    n_steps : int
    best_epoch : int
        Epoch (from 1) whose weights the net holds now.
    batch_size : int
        Rows a step at the end: smaller than planned after memory ran out.
    device : str
    stop_reason : {"n_epochs", "patience", "time_limit", "stopped", "generated"}
    seconds : float
    """

    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    n_steps: int
    best_epoch: int
    batch_size: int
    device: str
    stop_reason: str
    seconds: float

    @property
    def n_epochs(self) -> int:
        """Epochs that were finished."""
        return len(self.train_loss)


def fit_net(
    net: nn.Module,
    train: Rows,
    *,
    plan: TrainingPlan,
    loss: Loss,
    validation: Rows | None = None,
    validation_loss: Loss | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    should_stop: Callable[[], bool] | None = None,
    time_limit_seconds: float | None = None,
) -> FitResult:
    """Train a net in place with mini-batches; it ends on the CPU, in evaluation mode, with its best weights.

    All randomness (order of rows, dropout) depends on ``seed`` and the number of the epoch alone, and the global
    random state is left as it was. So on the CPU the same call gives the same weights, and a training that was
    stopped and resumed ends where an uninterrupted one ends.

    Parameters
    ----------
    net : Module
    train : Rows
    plan : TrainingPlan
    loss : callable
        ``loss(net(x), y, weight)``, see :mod:`autometa.gradient.losses`.
    validation : Rows or None
        Hold-out for early stopping. Without one all epochs are run and the last weights are kept.
    validation_loss : callable or None
        Judges the hold-out; ``None`` takes ``loss``.
    seed : int, default 0
    device : str, default "cpu"
    checkpoint : path or None
        File that is written after each epoch and resumed from if it is there.
    should_stop : callable or None
        Asked after each epoch, and now and then within one; training ends when it answers True.
    time_limit_seconds : float or None
        Training ends after the step during which the time ran out. An epoch cut short counts only if it is the
        first, so that there is always something learned.

    Raises
    ------
    TrainingDiverged
        The loss became NaN or infinite.
    ArtefactError
        The checkpoint is damaged or belongs to another training.
    """
    if len(train) == 0:
        raise ValueError("The training rows are empty. Pass at least one row.")
    started = time.perf_counter()
    kind = device.partition(":")[0]
    fork_devices = [torch.device(device)] if kind != "cpu" else []
    with torch.random.fork_rng(devices=fork_devices, device_type=kind if kind != "cpu" else "cuda"):
        net.to(device)
        loop = _Loop(net, plan, seed, device, loss, validation_loss or loss)
        deadline = None if time_limit_seconds is None else started + time_limit_seconds
        try:
            reason = loop.run(train, validation, checkpoint, _Brake(deadline, should_stop))
        finally:
            loop.flat.release()
            net.to("cpu").eval()
    progress = loop.progress
    return FitResult(
        tuple(progress.train_loss), tuple(progress.validation_loss), loop.optimizer.n_steps,
        progress.best_epoch, progress.batch_size, device, reason, time.perf_counter() - started,
    )  # fmt: skip


@dataclass
class _Brake:
    """Says when to stop from outside, and remembers why."""

    deadline: float | None
    should_stop: Callable[[], bool] | None
    reason: str = ""

    def pulled(self, *, ask: bool) -> bool:
        if self.deadline is not None and time.perf_counter() >= self.deadline:
            self.reason = "time_limit"
        elif ask and self.should_stop is not None and self.should_stop():
            self.reason = "stopped"
        return bool(self.reason)


class _Loop:
    """The state of one training."""

    def __init__(
        self, net: nn.Module, plan: TrainingPlan, seed: int, device: str, loss: Loss, validation_loss: Loss
    ) -> None:
        self.net, self.plan, self.seed, self.device = net, plan, seed, device
        self.loss, self.validation_loss = loss, validation_loss
        self.flat = FlatParameters(net)
        self.optimizer = Optimizer(plan.optimizer)
        self.progress = Progress(plan.batch_size)
        self.best = self.flat.weights.clone()  # (P,)
        cuda = device.startswith("cuda")
        self.autocast = cuda and plan.mixed_precision and torch.cuda.is_bf16_supported()
        self.generator = torch.Generator()

    def run(self, train: Rows, validation: Rows | None, checkpoint: str | Path | None, brake: _Brake) -> str:
        """Epochs until something says stop; returns what it was."""
        train, validation = self._on_device(train), None if validation is None else self._on_device(validation)
        if checkpoint is not None and Path(checkpoint).exists():
            self._resume(checkpoint)
        reason = self._finished()
        while not reason:
            complete = self._run_epoch(train, brake)
            if complete or not self.progress.train_loss:
                self._close_epoch(validation)
            if not complete:
                break
            reason = self._finished()
            if checkpoint is not None:
                save_checkpoint(checkpoint, self._signature(), self.progress, self._tensors(), self.optimizer.n_steps)
            if not reason and brake.pulled(ask=True):
                break
        with torch.no_grad():
            self.flat.weights.copy_(self.best)
        return reason or brake.reason

    def _finished(self) -> str:
        epoch, patience = len(self.progress.train_loss), self.plan.patience
        if epoch >= self.plan.n_epochs:
            return "n_epochs"
        waited = epoch - self.progress.best_epoch
        return "patience" if patience is not None and waited >= patience and self.progress.validation_loss else ""

    def _run_epoch(self, train: Rows, brake: _Brake) -> bool:
        """One pass over the rows; False if it was cut short."""
        epoch, n = len(self.progress.train_loss), len(train)
        self.generator.manual_seed(self.seed * _SEED_STRIDE + epoch)
        torch.manual_seed(self.seed * _SEED_STRIDE + epoch)
        shuffled = train.take(torch.randperm(n, generator=self.generator).to(train.x.device))
        self.net.train()
        total, start, n_done = torch.zeros((), device=self.device), 0, 0
        while start < n:
            n_left = max(1, round((n - start) / self.progress.batch_size))
            stop = start + -(-(n - start) // n_left)
            rate = self.plan.schedule.rate((epoch + 0.5 * (start + stop) / n) / self.plan.n_epochs)
            try:
                total += self._step(shuffled.take(slice(start, stop)), rate) * (stop - start)
            except RuntimeError as error:
                self._shrink_batch(error, stop - start)
                continue
            start, n_done = stop, n_done + 1
            if start < n and brake.pulled(ask=n_done % _CHECK_EVERY_STEPS == 0):
                break
        self._last_train_loss = float(total) / start
        return start >= n

    def _step(self, batch: Rows, rate: float) -> Tensor:
        """One update; returns the loss without waiting for the device."""
        batch = batch.to(self.device)
        self.flat.gradient.zero_()
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.autocast):
            output = self.net(batch.x)
        loss = self.loss(output.float(), batch.y, batch.weight)
        loss.backward()  # type: ignore[no-untyped-call]
        self.flat.clip_gradient(self.plan.max_gradient_norm)
        self.optimizer.step(self.flat.weights, self.flat.gradient, rate)
        return loss.detach()

    def _shrink_batch(self, error: RuntimeError, n_rows: int) -> None:
        """Halve the batch if memory ran out; raise the error again if it was another or one row is too many."""
        if not is_out_of_memory(error) or n_rows <= 1:
            raise error
        self.progress.batch_size = max(1, n_rows // 2)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _close_epoch(self, validation: Rows | None) -> None:
        """Judge the weights and keep them if they are the best so far."""
        progress = self.progress
        self._check_finite(self._last_train_loss)
        progress.train_loss.append(self._last_train_loss)
        if validation is not None:
            value = self._validate(validation)
            self._check_finite(value)
            progress.validation_loss.append(value)
            if value >= progress.best_loss:
                return
            progress.best_loss = value
        progress.best_epoch = len(progress.train_loss)
        self.best.copy_(self.flat.weights)

    def _check_finite(self, value: float) -> None:
        if value != value or value in (float("inf"), float("-inf")):
            raise TrainingDiverged(
                f"The loss became {value} in epoch {len(self.progress.train_loss) + 1} (optimizer "
                f"{self.plan.optimizer.name!r}, peak learning rate {self.plan.schedule.peak:g}). "
                "Lower the learning rate."
            )

    @torch.no_grad()
    def _validate(self, rows: Rows) -> float:
        self.net.eval()
        total, weight_sum = 0.0, 0.0
        size = _PREDICT_ROWS
        start = 0
        while start < len(rows):
            part = rows.take(slice(start, start + size)).to(self.device)
            try:
                with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.autocast):
                    output = self.net(part.x)
                value = float(self.validation_loss(output.float(), part.y, part.weight))
            except RuntimeError as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                size //= 2
                continue
            share = float(len(part) if part.weight is None else part.weight.sum())
            total, weight_sum, start = total + value * share, weight_sum + share, start + size
        return total / max(weight_sum, 1e-12)

    def _on_device(self, rows: Rows) -> Rows:
        """The rows on the device, or where they are if they do not fit: each batch is moved then."""
        try:
            return rows.to(self.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return rows

    def _tensors(self) -> dict[str, Tensor]:
        moments = {f"moment.{name}": value for name, value in self.optimizer.moments.items()}
        return {"weights": self.flat.weights, "best": self.best, **moments}

    def _signature(self) -> dict[str, object]:
        """What must be equal for a checkpoint to be continued."""
        return {"plan": repr(self.plan), "seed": self.seed, "n_weights": self.flat.weights.numel()}

    def _resume(self, checkpoint: str | Path) -> None:
        self.progress, tensors, self.optimizer.n_steps = load_checkpoint(checkpoint, self._signature())
        with torch.no_grad():
            self.flat.weights.copy_(tensors.pop("weights"))
            self.best.copy_(tensors.pop("best"))
        moments = {name.removeprefix("moment."): value.to(self.device) for name, value in tensors.items()}
        self.optimizer.moments = moments
