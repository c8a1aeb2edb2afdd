"""What a meta-model knows of one metric, or of log-seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autometa.meta_model.calibration import Calibration
from autometa.meta_model.outputs import Relation
from autometa.meta_model.priors import Floats, ScalePrior

SIZES = ("log_rows", "log_columns", "log_classes")
"""Meta-features (decimal logarithms) whose effect on log-seconds is linear, where a table has them."""


@dataclass(frozen=True)
class SizeScale:
    """Measures of size about their means, and where the effect of the first one, of rows, is no longer known.

    Parameters
    ----------
    names : sequence of str
        Meta-features.
    centre : sequence of float
        Their means over the training datasets, which also stand for missing ones.
    cap : float or None
        Where the first measure saturates: a corpus measured on at most so many rows. ``None``: nowhere.
    largest : float or None
        The largest first measure of a corpus in which nothing saturates.
    growth : sequence of float
        Power of the rows by which the seconds of each candidate grow beyond the largest. Empty: 1 for all.
    """

    names: Sequence[str]
    centre: Sequence[float]
    cap: float | None = None
    largest: float | None = None
    growth: Sequence[float] = ()

    def values(self, meta_features: Mapping[str, Any]) -> Floats:
        """Centred measures of one dataset, shape (len(names),)."""
        found = np.array([_number(meta_features.get(name)) for name in self.names])
        if len(found):
            found[0] = min(found[0], *(limit for limit in (self.cap, self.largest) if limit is not None), math.inf)
        return np.asarray(np.where(np.isfinite(found), found - np.asarray(self.centre), 0.0))

    def beyond(self, meta_features: Mapping[str, Any]) -> Floats:
        """What rows beyond the largest add to log-seconds, shape (P,), or (1,) where it is the same for all."""
        more = math.nan
        if self.largest is not None and self.names:
            more = math.log(10.0) * (_number(meta_features.get(self.names[0])) - self.largest)
        return (more if more > 0 else 0.0) * np.asarray(self.growth or [1.0], dtype=float)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def fade(novelty: float, threshold: float) -> float:
    """Factor on the forecast: 1 up to the threshold, then linearly down to 0 for what is farther than all known."""
    if not math.isfinite(novelty) or novelty <= threshold:
        return 1.0
    return max(0.0, (1.0 - novelty) / max(1.0 - threshold, 1e-9))


class Head(nn.Module):
    """What is known of one metric (or of log-seconds): portfolio mean, output directions, residuals, scale prior.

    Parameters
    ----------
    n_outputs, n_pool, n_residuals, n_learners, n_scale_inputs, n_sizes : int
        Sizes: shared outputs R, pool members P with this metric, training datasets with it, stacked learners, inputs
        of the scale prior, measures of size whose effect is linear.
    n_auxiliary : int
        Auxiliary outputs.

    Attributes
    ----------
    members : Tensor of shape (P,)
        Positions in the pool.
    portfolio : Tensor of shape (P,)
        Mean normalised score over training datasets.
    directions : Tensor of shape (R, P)
        From shared outputs to residual scores.
    stack : Tensor of shape (n_learners,)
        Weight of each learner's residual.
    residuals : Tensor of shape (n_residuals, P), float16
        Cross-fitted errors of the forecast on the training datasets.
    coef : Tensor of shape (n_scale_inputs + 1, 2)
        Ridge regression of offset and log-scale.
    tail : Tensor of shape (P,)
        How far scores fall below the lowest one that is told apart, root mean square, normalised units.
    sizes_coef : Tensor of shape (n_sizes, P)
        Effect of the measures of size (log-seconds: rows, columns, classes).
    auxiliary : Tensor of shape (n_auxiliary, P)
        Expected normalised scores in the auxiliary outputs that ``settings["outputs"]`` names, in their order.
    rows, winners : Tensor of shape (n_residuals,)
        Positions of the training datasets with this metric, and of the candidate that won there in the pool.
    """

    members: Tensor
    portfolio: Tensor
    directions: Tensor
    stack: Tensor
    residuals: Tensor
    coef: Tensor
    tail: Tensor
    sizes_coef: Tensor
    auxiliary: Tensor
    rows: Tensor
    winners: Tensor

    def __init__(
        self,
        n_outputs: int,
        n_pool: int,
        *,
        n_residuals: int,
        n_learners: int,
        n_scale_inputs: int = 0,
        n_sizes: int = 0,
        n_auxiliary: int = 0,
    ) -> None:
        super().__init__()
        self.register_buffer("members", torch.zeros(n_pool, dtype=torch.int32))
        self.register_buffer("portfolio", torch.zeros(n_pool))
        self.register_buffer("directions", torch.zeros(n_outputs, n_pool, dtype=torch.float16))
        self.register_buffer("stack", torch.zeros(n_learners))
        self.register_buffer("residuals", torch.zeros(n_residuals, n_pool, dtype=torch.float16))
        self.register_buffer("coef", torch.zeros(n_scale_inputs + 1, 2))
        self.register_buffer("tail", torch.zeros(n_pool))
        self.register_buffer("sizes_coef", torch.zeros(n_sizes, n_pool))
        # A file that was written before there were auxiliary outputs holds none.
        self.register_buffer("auxiliary", torch.zeros(n_auxiliary, n_pool), persistent=n_auxiliary > 0)
        self.register_buffer("rows", torch.zeros(n_residuals, dtype=torch.int32))
        self.register_buffer("winners", torch.zeros(n_residuals, dtype=torch.int32))
        self.settings: dict[str, Any] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments of the constructor."""
        return {
            "n_outputs": self.directions.shape[0], "n_pool": self.directions.shape[1],
            "n_residuals": len(self.residuals), "n_learners": len(self.stack),
            "n_scale_inputs": len(self.coef) - 1, "n_sizes": len(self.sizes_coef), "n_auxiliary": len(self.auxiliary),
        }  # fmt: skip

    def forecast(
        self,
        outputs: Sequence[Tensor],
        *,
        recalled: Tensor | None = None,
        trust: float = 1.0,
        meta_features: Mapping[str, Any] | None = None,
    ) -> Floats:
        """Normalised scores of the pool (log-seconds: as they are) on one dataset, shape (P,).

        Parameters
        ----------
        outputs : sequence of Tensor of shape (1, R)
            Of the learners.
        recalled : Tensor of shape (P,), optional
            What a memory expects them to get wrong.
        trust : float
            Share of what both say beyond the portfolio's mean.
        meta_features : mapping, optional
            Where the measures of size are found.
        """
        scores = self.portfolio if recalled is None else self.portfolio + trust * recalled  # (P,)
        for weight, output in zip(self.stack, outputs, strict=True):
            scores = scores + trust * weight * (output[0] @ self.directions.to(output.dtype))  # (P,)
        result = np.asarray(scores.detach().cpu().numpy(), dtype=float)
        if len(self.sizes_coef) and meta_features is not None:
            sizes = SizeScale(**self.settings["sizes"])
            effect = sizes.values(meta_features) @ self.sizes_coef.cpu().numpy().astype(float)
            result = result + effect + sizes.beyond(meta_features)
        return result

    def trust(self, task: str, novelty: float, *, opening: bool = True) -> float:
        """Share of the forecast from meta-features that is kept for a dataset of this task and novelty.

        ``opening``: before the first trial, otherwise in the search after it.
        """
        shrink = self.settings.get("opening" if opening else "shrink", {})
        share = float(shrink.get(task, shrink.get("", 1.0)))
        return share * fade(novelty, float(self.settings.get("threshold", 1.0)))

    def noise_share(self, task: str) -> float:
        """Share of a squared standard error that is a candidate's own, for this task."""
        found = self.settings.get("noise_share", {})
        return float(found.get(task, found.get("", 1.0)))

    def relations(self, task: str) -> dict[str, Relation]:
        """How each auxiliary output follows from this metric, for this task, in the order of :attr:`auxiliary`."""
        found = self.settings.get("outputs", {})
        return {name: Relation.from_spec(by_task.get(task, by_task[""])) for name, by_task in found.items()}

    def calibration(self, task: str, meta_features: Mapping[str, Any]) -> Calibration | None:
        """Calibration of the intervals for this task and size, else the one for all; ``None`` before any was made."""
        found = self.settings.get("calibration", {})
        spec = found.get(task, found.get(""))
        return None if spec is None else Calibration.from_spec(spec).for_rows(_number(meta_features.get(SIZES[0])))

    def covariance(self, target: Floats) -> Floats:
        """Shrunk covariance of the residuals, shape (P, P); ``target`` is the structured correlation."""
        errors = self.residuals.cpu().numpy().astype(float)
        return shrunk_covariance(errors, target, self.settings["shrinkage"])

    def scale_prior(self, x: Tensor) -> ScalePrior:
        """Prior of offset and scale for encoded meta-features of shape (1, D)."""
        offset, log_scale = (x @ self.coef[:-1] + self.coef[-1]).squeeze(0).tolist()
        s = self.settings["scale"]
        if s["relative"]:
            return ScalePrior(
                s["sign"], s["offset_std"], 0.0, log_scale, s["log_scale_std"], relative=True, log_size=offset
            )
        return ScalePrior(offset, s["offset_std"], s["slope"], log_scale, s["log_scale_std"])


def shrunk_covariance(errors: Floats, target: Floats, shrinkage: float) -> Floats:
    """Sample covariance (about zero) shrunk towards a structured correlation with the same variances."""
    sample = errors.T @ errors / len(errors)
    std = np.sqrt(np.maximum(np.diag(sample), 1e-6))
    return np.asarray((1 - shrinkage) * sample + shrinkage * target * np.outer(std, std))
