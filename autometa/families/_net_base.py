"""What the two neural estimators share: columns, births, training, going on, state. Needs no Optuna."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import rtdl_num_embeddings
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from autometa.exceptions import ArtefactError
from autometa.families._net_births import LEARNED, BirthReport, BirthTask, Train, fit_births, make_generated_net
from autometa.families._net_config import hold_out, make_plan
from autometa.families._net_defaults import full_config
from autometa.families._net_learned import learned_net, make_learned_net, shipped_birth
from autometa.gradient import losses
from autometa.gradient.devices import choose_device, torch_threads
from autometa.gradient.fit import FitResult, Rows, TrainingPlan, fit_net
from autometa.gradient.initialization import initialize
from autometa.nets.ensemble import EnsembleMLP
from autometa.nets.mlp import MLP, TableInput

_MAX_EMBEDDED_COLUMNS = 128
_N_BINS = 16
_PREDICT_ROWS = 8_192
_FORMAT = "autometa-net-1"

State = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""A fitted estimator as data: what JSON can hold, and arrays."""


class NetEstimator(BaseEstimator):
    """What the classifier and the regressor share.

    Parameters
    ----------
    net : {"mlp", "tabm"}, default "mlp"
    config : mapping or None
        Changes to the net's default configuration. Tables with more than 128 numeric columns, and columns too few
        rows to bin, get no numerical embedding.
    n_categorical : int, default 0
        The first columns, which hold category codes: 0 unknown or missing, then 1, 2, ... Codes above the largest of
        training are read as 0.
    random_state : int, default 0
    n_threads : int or None, default 1
        CPU threads inside fit and predict; ``None`` leaves PyTorch's setting.
    device : {"auto", "cpu", "cuda", "mps"}, default "auto"
    checkpoint : str or None
    should_stop : callable or None
    time_limit_seconds : float or None
        See :func:`autometa.gradient.fit.fit_net`.
    birth_fold : int or None, default None
        For measurements: the learned birth that was trained without the tables of this fold.

    Attributes
    ----------
    net_ : Module
        On the CPU.
    result_ : FitResult
        Losses by epoch, number of steps, why training ended. Not there after :meth:`from_state`.
    device_ : DeviceReport
        Where it was trained and why. Not there after :meth:`from_state`.
    birth_ : BirthReport
        Which birth the net had and, with ``init="generated"``, the race that it won. Not there after
        :meth:`from_state`.
    n_features_in_ : int
    """

    def __init__(
        self,
        net: str = "mlp",
        config: Mapping[str, Any] | None = None,
        n_categorical: int = 0,
        random_state: int = 0,
        n_threads: int | None = 1,
        device: str = "auto",
        checkpoint: str | None = None,
        should_stop: Callable[[], bool] | None = None,
        time_limit_seconds: float | None = None,
        birth_fold: int | None = None,
    ) -> None:
        self.net = net
        self.config = config
        self.n_categorical = n_categorical
        self.random_state = random_state
        self.n_threads = n_threads
        self.device = device
        self.checkpoint = checkpoint
        self.should_stop = should_stop
        self.time_limit_seconds = time_limit_seconds
        self.birth_fold = birth_fold

    def _fit(self, X: NDArray[np.float32], y: NDArray[Any], sample_weight: ArrayLike | None, n_classes: int) -> None:
        """Train on prepared targets: class codes, or standardised float32 values where ``n_classes`` is 0."""
        config, seed, started = full_config(self.net, self.config), int(self.random_state), time.perf_counter()
        weight = None if sample_weight is None else torch.from_numpy(np.array(sample_weight, dtype=np.float32))
        train, held = hold_out(y, stratify=n_classes > 0, seed=seed)
        self._learn_columns(X, X[train])
        rows = Rows(self._to_net(X), torch.from_numpy(y), weight)
        train_rows = rows.take(torch.from_numpy(train))
        loss = losses.classification_loss(config["label_smoothing"]) if n_classes else losses.regression_loss()
        judge = losses.classification_validation_loss if n_classes else losses.regression_validation_loss
        self.device_ = choose_device(self.device, n_rows=len(train))
        with torch_threads(self.n_threads):
            self._bins = self._learn_bins(train_rows.x, config["numerical_embedding"])
            task = BirthTask(
                rows, torch.from_numpy(train), torch.from_numpy(held), self._sizes, n_classes,
                make_plan(config, len(train), early_stopping=len(held) > 0), judge, seed,
            )  # fmt: skip

            def train_net(net: nn.Module, plan: TrainingPlan, validation: Rows | None) -> FitResult:
                limit = self.time_limit_seconds
                return fit_net(
                    net, train_rows, plan=plan, loss=loss, validation=validation, validation_loss=judge, seed=seed,
                    device=self.device_.device, checkpoint=self.checkpoint if plan is task.plan else None,
                    should_stop=self.should_stop,
                    time_limit_seconds=None if limit is None else max(0.0, limit + started - time.perf_counter()),
                )  # fmt: skip

            if config["init"] == "generated":
                self.net_ = self._race(config, task, train_net)
                return
            net = self._first_net(config, train_rows, n_classes)
            if config["init"] == "learned" and task.validation is None:
                # Nothing says when to stop: the steps that it was meta-trained for are better than a whole schedule.
                seconds = time.perf_counter() - started
                self.result_ = FitResult((), (), 0, 0, len(train_rows), "cpu", "too few rows", seconds)
                net.eval()
            else:
                self.result_ = train_net(net, task.plan, task.validation)
            self.birth_ = BirthReport(config["init"], reason="asked for")
        self.net_ = net

    def _race(self, config: Mapping[str, Any], task: BirthTask, train_net: Train) -> nn.Module:
        """The winner of the race of births, trained; see :func:`autometa.families._net_births.fit_births`."""
        rows, kind = task.rows.take(task.train), "classification" if task.n_classes else "regression"

        def learned() -> nn.Module:
            birth = shipped_birth(kind, self.birth_fold)
            return learned_net(rows, self._sizes, task.n_classes, seed=task.seed, n_steps=birth.n_steps, birth=birth)

        net, self.result_, self.birth_ = fit_births(
            task, lambda: self._first_net({**config, "init": "random"}, rows, task.n_classes), train_net,
            others={LEARNED: learned},
        )  # fmt: skip
        init, dropout = self.birth_.init, config["dropout"] if self.birth_.init == "random" else 0.0
        self._architecture = {**config, "init": init, "dropout": dropout, "n_outputs": max(1, task.n_classes)}
        return net

    def _first_net(self, config: Mapping[str, Any], rows: Rows, n_classes: int) -> nn.Module:
        """The net before its first step."""
        seed, n_outputs = int(self.random_state), max(1, n_classes)
        if config["init"] == "learned":
            birth = shipped_birth("classification" if n_classes else "regression", self.birth_fold)
            self._architecture = {**config, "n_outputs": n_outputs}
            return learned_net(
                rows, self._sizes, n_classes, dropout=config["dropout"], seed=seed, n_steps=birth.n_steps, birth=birth
            )
        net = initialize(lambda: self._make_net(config, n_outputs), init=config["init"], seed=seed)
        _set_output_bias(net, rows.y.numpy(), n_classes)
        return net

    def _refine(
        self, X: ArrayLike, y: NDArray[Any], sample_weight: ArrayLike | None, n_classes: int, *,
        rate_factor: float, epochs_factor: float,
    ) -> None:  # fmt: skip
        """Go on from the weights on all rows; see ``refine`` of the subclasses."""
        check_is_fitted(self, "net_")
        matrix = check_matrix(X, self.n_categorical, self.n_features_in_)
        check_lengths(matrix, y, sample_weight)
        config = full_config(self.net, self.config)
        weight = None if sample_weight is None else torch.from_numpy(np.array(sample_weight, dtype=np.float32))
        plan = make_plan(config, len(matrix), early_stopping=False)
        plan = replace(
            plan, schedule=replace(plan.schedule, peak=plan.schedule.peak * rate_factor),
            n_epochs=max(1, round(self.result_.best_epoch * epochs_factor)),
        )  # fmt: skip
        loss = losses.classification_loss(config["label_smoothing"]) if n_classes else losses.regression_loss()
        self.device_ = choose_device(self.device, n_rows=len(matrix))
        before = [value.detach().clone() for value in self.net_.parameters()]
        with torch_threads(self.n_threads):
            self.result_ = fit_net(
                self.net_, Rows(self._to_net(matrix), torch.from_numpy(y), weight), plan=plan, loss=loss,
                seed=int(self.random_state) + 1, device=self.device_.device, should_stop=self.should_stop,
                time_limit_seconds=self.time_limit_seconds,
            )  # fmt: skip
        with torch.no_grad():
            for value, old in zip(self.net_.parameters(), before, strict=True):
                value.lerp_(old, 0.5)

    def _learn_columns(self, X: NDArray[np.float32], X_train: NDArray[np.float32]) -> None:
        """Category sizes from all rows; the numeric columns that vary among the training rows."""
        codes, numbers = X[:, : self.n_categorical], X_train[:, self.n_categorical :]
        self._sizes = [int(size) for size in np.maximum(codes.max(axis=0), 0).astype(int) + 1]
        self._kept = np.flatnonzero((numbers != numbers[:1]).any(axis=0))
        if len(self._kept) + len(self._sizes) == 0:
            self._kept = np.arange(1)

    def _to_net(self, X: NDArray[np.float32]) -> Tensor:
        """Codes never seen in training become 0, constant columns are left out; (N, F) -> (N, F')."""
        codes, numbers = X[:, : self.n_categorical], X[:, self.n_categorical :][:, self._kept]
        known = (codes >= 0) & (codes < np.array(self._sizes, dtype=np.float32))
        return torch.from_numpy(np.concatenate([np.where(known, codes, 0.0), numbers], axis=1, dtype=np.float32))

    def _learn_bins(self, x: Tensor, kind: str) -> list[Tensor] | None:
        """Quantile bins of the numeric columns, or None where the embedding needs or can have none."""
        numbers = x[:, self.n_categorical :]
        n_bins = min(_N_BINS, len(x) // 4)
        if kind != "piecewise_linear" or not 0 < len(self._kept) <= _MAX_EMBEDDED_COLUMNS or n_bins < 2:
            return None
        if not bool((numbers != numbers[:1]).any(0).all()):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a 0/1 column has one bin, which is right
            bins: list[Tensor] = rtdl_num_embeddings.compute_bins(numbers, n_bins=n_bins)
        return bins

    def _make_net(self, config: Mapping[str, Any], n_outputs: int) -> nn.Module:
        """The net, its architecture kept for :meth:`to_state`."""
        if config["init"] == "generated":
            return make_generated_net(len(self._sizes) + len(self._kept), self._sizes, n_outputs)
        if config["init"] == "learned":
            n_columns = len(self._sizes) + len(self._kept)
            return make_learned_net(n_columns, self._sizes, n_outputs, dropout=config["dropout"])
        kind = config["numerical_embedding"]
        if len(self._kept) > _MAX_EMBEDDED_COLUMNS or (kind == "piecewise_linear" and self._bins is None):
            kind = "none"
        self._architecture = {**config, "n_outputs": n_outputs}
        table_input = TableInput(len(self._kept), self._sizes, numerical_embedding=kind, bins=self._bins)
        if self.net == "tabm":
            return EnsembleMLP(
                table_input, n_outputs, n_members=config["n_members"], n_layers=config["n_layers"],
                width=config["width"], dropout=config["dropout"],
            )  # fmt: skip
        return MLP(
            table_input, n_outputs, hidden_sizes=(config["width"],) * config["n_layers"],
            activation=config["activation"], dropout=config["dropout"],
        )  # fmt: skip

    def _outputs(self, X: ArrayLike, to_prediction: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
        """Averaged prediction of the net: (N, C) probabilities or (N,) standardised values."""
        check_is_fitted(self, "net_")
        x = self._to_net(check_matrix(X, self.n_categorical, self.n_features_in_))
        with torch_threads(self.n_threads), torch.inference_mode():
            parts = [to_prediction(self.net_(part)).numpy() for part in torch.split(x, _PREDICT_ROWS)]
        return np.concatenate(parts).astype(np.float64)

    def _extra_state(self) -> State:
        """What a fitted subclass adds to the state."""
        raise NotImplementedError

    def _set_extra_state(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        raise NotImplementedError

    def to_state(self) -> State:
        """The fitted estimator as data: a dict that JSON can hold and a dict of arrays; see :meth:`from_state`."""
        check_is_fitted(self, "net_")
        header, arrays = self._extra_state()
        header |= {
            "format": _FORMAT, "estimator": type(self).__name__, "net": self.net,
            "config": dict(self.config or {}), "architecture": self._architecture,
            "n_categorical": int(self.n_categorical), "random_state": int(self.random_state),
            "n_threads": self.n_threads, "device": self.device, "n_features_in": self.n_features_in_,
            "category_sizes": self._sizes, "n_bin_edges": None if self._bins is None else [len(b) for b in self._bins],
        }  # fmt: skip
        arrays["kept"] = self._kept.astype(np.int64)
        if self._bins is not None:
            arrays["bins"] = torch.cat(self._bins).numpy()
        arrays |= {f"weights.{name}": value.numpy().copy() for name, value in self.net_.state_dict().items()}
        return header, arrays

    @classmethod
    def from_state(cls, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Any:
        """The estimator that :meth:`to_state` described; its predictions are bit-equal.

        Raises
        ------
        ArtefactError
            The state is of another format or estimator, or its arrays do not fit the net.
        """
        if header.get("format") != _FORMAT or header.get("estimator") != cls.__name__:
            raise ArtefactError(
                f"The state must be a {cls.__name__} in format {_FORMAT}. "
                f"Got {header.get('estimator')!r} in format {header.get('format')!r}."
            )
        names = ("net", "config", "n_categorical", "random_state", "n_threads", "device")
        try:
            self = cls(**{name: header[name] for name in names})
            self._restore(header, arrays)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtefactError(f"The state of the {cls.__name__} cannot be restored: {error}") from error
        return self

    def _restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.n_features_in_ = int(header["n_features_in"])
        self._sizes, self._kept = list(header["category_sizes"]), np.array(arrays["kept"], dtype=np.intp)
        edges = header["n_bin_edges"]
        self._bins = None if edges is None else list(torch.split(torch.from_numpy(np.array(arrays["bins"])), edges))
        architecture = dict(header["architecture"])
        n_outputs = architecture.pop("n_outputs")
        net = initialize(lambda: self._make_net(architecture, n_outputs))
        weights = {
            name.removeprefix("weights."): torch.from_numpy(np.array(value))
            for name, value in arrays.items()
            if name.startswith("weights.")
        }
        net.load_state_dict(weights)
        self.net_ = net.eval()
        self._set_extra_state(header, arrays)


@torch.no_grad()
def _set_output_bias(net: nn.Module, y: NDArray[Any], n_classes: int) -> None:
    """Start from the answer of a constant model: the class shares, or the mean (0)."""
    shares = np.bincount(y, minlength=n_classes) + 1.0 if n_classes else np.ones(1)
    bias = net.get_submodule("output").get_parameter("bias")  # (C,) or (K, C)
    bias.copy_(torch.from_numpy(np.log(shares / shares.sum())).float().expand_as(bias))


def check_matrix(X: ArrayLike, n_categorical: int, n_features: int | None = None) -> NDArray[np.float32]:
    """A finite float32 matrix, with the columns of training if they are known."""
    matrix = np.asarray(X, dtype=np.float32)
    if matrix.ndim != 2 or matrix.shape[0] == 0 or matrix.shape[1] == 0:
        raise ValueError(f"X must be a matrix with at least one row and one column. Got shape {matrix.shape} instead.")
    if not np.isfinite(matrix).all():
        raise ValueError("X must be finite. Got NaN or infinite values: encode the table with matrix='net' first.")
    if n_features is not None and matrix.shape[1] != n_features:
        raise ValueError(f"X must have {n_features} columns as in training. Got {matrix.shape[1]} instead.")
    if not 0 <= n_categorical <= matrix.shape[1]:
        raise ValueError(f"n_categorical must lie in [0, {matrix.shape[1]}]. Got {n_categorical} instead.")
    return matrix


def check_lengths(matrix: NDArray[np.float32], y: NDArray[Any], sample_weight: ArrayLike | None) -> None:
    """One target and, where there are any, one weight per row."""
    if y.shape != (len(matrix),):
        raise ValueError(f"y must have one value per row ({len(matrix)}). Got shape {y.shape} instead.")
    if sample_weight is not None and np.shape(sample_weight) != (len(matrix),):
        raise ValueError(f"sample_weight must have one value per row ({len(matrix)}). Got {np.shape(sample_weight)}.")
