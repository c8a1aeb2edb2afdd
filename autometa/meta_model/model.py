"""The meta-model: (meta-features, candidates, metric) -> belief."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autometa.exceptions import ArtefactError
from autometa.family import Candidate
from autometa.meta_model.belief import Belief
from autometa.meta_model.encoders import ConfigEncoder, FeatureEncoder
from autometa.meta_model.heads import Head as Head
from autometa.meta_model.heads import shrunk_covariance as shrunk_covariance
from autometa.meta_model.memory import TaskMemory
from autometa.meta_model.novelty import Novelty
from autometa.meta_model.outputs import Output
from autometa.meta_model.pool import CandidatePool, View
from autometa.meta_model.priors import Covariance, Floats, Prior, SecondsPrior, kernel
from autometa.meta_model.regressors import Forest, MLPBag, Ridge
from autometa.meta_model.saved import read_saved

FORMAT_VERSION = 2


class MetaModel(nn.Module):
    """What earlier datasets teach about a new one. Made by :func:`autometa.meta_training.train_meta_model`.

    Parameters
    ----------
    encoder : FeatureEncoder
    pool : CandidatePool
    learners : sequence of Module
        Each maps encoded meta-features (N, D) to shared outputs (N, R).
    heads : mapping of metric name to Head
        The first is the default metric.
    seconds_head : Head or None
    novelty : Novelty or None
    memory : TaskMemory or None
        What the other parts got wrong on past tasks; shifts the forecast of similar ones.
    card : mapping
        JSON: trained_on, groups, versions and whatever else describes the training.
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        pool: CandidatePool,
        *,
        learners: Sequence[nn.Module],
        heads: Mapping[str, Head],
        seconds_head: Head | None = None,
        novelty: Novelty | None = None,
        memory: TaskMemory | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        self.learners = nn.ModuleList(learners)
        self.metrics = tuple(heads)
        self.heads = nn.ModuleList(heads.values())
        self.seconds_head = seconds_head
        self.novelty = novelty
        self.memory = memory
        self.card = dict(card or {})
        self._roots: dict[int, Floats] = {}
        self.eval()

    @property
    def trained_on(self) -> frozenset[str]:
        """Names and, where the corpus told them, content fingerprints of the training datasets."""
        return frozenset(self.card.get("trained_on", ())) | frozenset(self.card.get("fingerprints", ()))

    def with_memory(self, memory: TaskMemory | None) -> MetaModel:
        """The same weights with another memory: with more tasks written to it, or ``None``."""
        other = MetaModel(
            self.encoder, self.pool, learners=list(self.learners),
            heads={metric: self.head(metric) for metric in self.metrics}, seconds_head=self.seconds_head,
            novelty=self.novelty, memory=memory, card=self.card,
        )  # fmt: skip
        other._roots = self._roots
        return other

    def forward(self, meta_features: pd.DataFrame | pd.Series | Mapping[str, Any]) -> list[Tensor]:
        """Shared outputs of each learner, each of shape (N, R)."""
        x = self.encoder(meta_features).to(self._device)  # (N, D)
        return [learner(x) for learner in self.learners]

    @torch.no_grad()
    def belief(
        self,
        meta_features: pd.Series | Mapping[str, Any],
        candidates: Sequence[Candidate],
        metric: str | None = None,
        *,
        machine_seconds: float | None = None,
    ) -> Belief:
        """What is believed of candidates on a dataset, before any trial.

        Parameters
        ----------
        meta_features : Series or mapping
            By name; what is absent counts as missing.
        candidates : sequence of Candidate
            In the training pool or not: configurations outside it are read through their neighbours of the same
            family, and candidates of an unknown family get an average forecast with a wide uncertainty.
        metric : str, optional
            Default: the first metric of the training table.
        machine_seconds : float, optional
            Seconds of the landmarkers' fixed piece of work (:class:`autometa.meta_features.MetaFeatures`), which tell
            the speed of this machine; trials correct it.

        Raises
        ------
        ValueError
            No candidates, or a metric that the model was not trained on.
        """
        if len(candidates) == 0:
            raise ValueError("candidates must hold at least one candidate. Got an empty list.")
        head = self.head(metric)
        features: dict[Any, Any] = dict(meta_features.items())
        metric = self.metrics[0] if metric is None else metric
        x, novelty = self._read(features)
        outputs = [learner(x) for learner in self.learners]
        recalled = self._recall(x, metric)
        task = str(features.get("task", ""))
        view = self._view(head, candidates)
        bold, trust = head.trust(task, novelty, opening=False), head.trust(task, novelty)
        mean, covariance = self._joint(head, head.forecast(outputs, recalled=recalled, trust=bold), view)
        opening = None
        if trust != bold:
            opening = self._centred(head, head.forecast(outputs, recalled=recalled, trust=trust), view)[0] - mean
        bandwidth = head.settings["bandwidth"]
        shifts = np.zeros((0, len(candidates)))
        if bandwidth < 1:
            errors = head.residuals.cpu().numpy().astype(np.float32)
            errors = errors - errors.mean(axis=0)
            shifts = _spread_over(errors, head, view, len(self.pool)) * np.sqrt(1 - bandwidth**2)
        scale = replace(head.scale_prior(x), unit=self._unit(metric, features))
        prior = Prior(
            mean, _scaled(covariance, bandwidth), scale, shifts=shifts, noise=head.settings["noise"],
            noise_share=head.noise_share(task), calibration=head.calibration(task, features), trust=trust,
            novelty=novelty, opening=opening,
            tail=_spread_over(head.tail.cpu().numpy()[None], head, view, len(self.pool))[0],
            outputs={} if scale.relative else self._outputs(head, view, metric, features),
        )  # fmt: skip
        timed = self.seconds_head
        if timed is None:
            return Belief(prior)
        if not torch.equal(timed.members, head.members):
            view = self._view(timed, candidates)
        trust = timed.trust("", novelty)
        mean, covariance = self._joint(timed, timed.forecast(outputs, trust=trust, meta_features=features), view)
        speed, speed_std = self._speed(timed, machine_seconds)
        noise = timed.settings["noise"]
        calibration = timed.calibration("", features)
        return Belief(prior, SecondsPrior(mean + speed, covariance, speed_std, noise, calibration))

    @torch.no_grad()
    def forecast(
        self,
        meta_features: pd.Series | Mapping[str, Any],
        candidates: Sequence[Candidate],
        metric: str | None = None,
        *,
        trust: float | None = None,
    ) -> Floats:
        """Forecast of candidates in normalised units, shape (C,): the mean of the belief without its uncertainty.

        ``trust`` is the share of what meta-features say; ``None``: what rehearsals taught, less for novel datasets.
        """
        head = self.head(metric)
        x, novelty = self._read(meta_features)
        outputs = [learner(x) for learner in self.learners]
        trust = head.trust(str(meta_features.get("task", "")), novelty) if trust is None else trust
        pool_mean = head.forecast(outputs, recalled=self._recall(x, metric), trust=trust)  # (P,)
        return self._centred(head, pool_mean, self._view(head, candidates))[0]

    def trust(self, meta_features: pd.Series | Mapping[str, Any], metric: str | None = None) -> float:
        """Share of what meta-features say that is kept for this dataset before the first trial."""
        return self.head(metric).trust(str(meta_features.get("task", "")), self._read(meta_features)[1])

    def _read(self, features: pd.Series | Mapping[str, Any]) -> tuple[Tensor, float]:
        """Encoded meta-features of one dataset, shape (1, D), and how novel they are (NaN if unknown)."""
        table = self.encoder.expand_one(features)
        encoded = self.encoder.encode(table)
        novelty = math.nan if self.novelty is None else float(self.novelty.percentile(encoded, table)[0])
        return torch.from_numpy(encoded).to(self._device, torch.float32), novelty  # (1, D)

    def _recall(self, x: Tensor, metric: str | None) -> Tensor | None:
        """What the memory expects the learners to get wrong on one dataset, by candidate of the head, shape (P,)."""
        if self.memory is None or not len(self.memory):
            return None
        recalled: Tensor = self.memory(x, metric)  # (1, pool)
        return recalled[0, self.head(metric).members.long()]

    def _speed(self, timed: Head, machine_seconds: float | None) -> tuple[float, float]:
        """Mean and standard deviation of the logarithm of how much slower this machine is than the corpus's."""
        std, known = float(timed.settings["speed_std"]), self.card.get("machine")
        if known is None or machine_seconds is None or not machine_seconds > 0:
            return 0.0, std
        # The fixed work is short and other processes disturb it: it counts by its scatter on the corpus's machine.
        weight = std**2 / (std**2 + float(known["variance"]))
        return weight * (math.log(machine_seconds) - float(known["log_seconds"])), std * math.sqrt(1 - weight)

    def _unit(self, metric: str, meta_features: Mapping[str, Any]) -> float:
        """Size of one unit of the dataset's scores; 1 for metrics without a unit, or where it is not known."""
        name = self.card.get("units", {}).get(metric)
        log_unit = float(meta_features.get(name, 0.0)) if name else 0.0
        return 10.0**log_unit if math.isfinite(log_unit) else 1.0

    def neighbours(self, meta_features: pd.Series | Mapping[str, Any], n: int = 5) -> list[tuple[str, float]]:
        """The training datasets that the trees find most alike, with their weights, largest first."""
        forest = next((m for m in self.learners if isinstance(m, Forest)), None)
        if forest is None:
            return []
        weights = forest.weights(self.encoder(meta_features).numpy())[0]
        names = self.card["trained_on"]
        return [(names[i], float(weights[i])) for i in np.argsort(-weights)[:n]]

    def winners(self, metric: str | None = None) -> dict[str, Candidate]:
        """What won on each training dataset with this metric, by the name of the dataset."""
        head, names = self.head(metric), self.card["trained_on"]
        pairs = zip(head.rows.tolist(), head.winners.tolist(), strict=True)
        return {names[row]: Candidate(*self.pool.candidates[winner]) for row, winner in pairs}

    def probes(self, metric: str | None = None) -> dict[int, list[Candidate]]:
        """Candidates whose scores after training on few rows inform on this metric, by the number of rows."""
        found = self.head(metric).settings.get("probes", {})
        return {int(n): [Candidate(*self.pool.candidates[i]) for i in members] for n, members in found.items()}

    @property
    def _device(self) -> torch.device:
        return self.encoder.quantiles.device

    def head(self, metric: str | None = None) -> Head:
        metric = self.metrics[0] if metric is None else metric
        if metric not in self.metrics:
            raise ValueError(f"metric must be one of {', '.join(self.metrics)}. Got {metric!r} instead.")
        head = self.heads[self.metrics.index(metric)]
        assert isinstance(head, Head)
        return head

    def _view(self, head: Head, candidates: Sequence[Candidate]) -> View:
        usable = np.zeros(len(self.pool), dtype=bool)
        usable[head.members.cpu().numpy()] = True
        return self.pool.view(candidates, usable)

    def _root(self, head: Head) -> Floats:
        """Cholesky factor of the pool's covariance, shape (P, P), computed once."""
        if id(head) not in self._roots:
            matrix = head.covariance(structure(self.pool, head.members.cpu().numpy(), head.settings["structure"]))
            jitter = 1e-5 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
            self._roots[id(head)] = np.linalg.cholesky(matrix + jitter)
        return self._roots[id(head)]

    def _joint(self, head: Head, pool_mean: Floats, view: View) -> tuple[Floats, Covariance]:
        """Mean (C,) and covariance over the viewed candidates, from the mean of the head's pool members (P,)."""
        mean, spread = self._centred(head, pool_mean, view)
        root = _spread_over(self._root(head).T, head, view, len(self.pool)).T
        outside = np.where(view.member >= 0, 0.0, spread)
        covariance = Covariance(
            root.astype(float), outside, view.family, view.vectors, view.bridge, self.pool.length_scale
        )
        return mean, covariance

    def _centred(self, head: Head, pool_mean: Floats, view: View) -> tuple[Floats, Floats]:
        """Means of the viewed candidates and how far those outside the pool may lie from them, each (C,)."""
        spread = np.full(len(self.pool.families) + 1, head.settings["spread"])
        for number, own in head.settings["family_spread"].items():
            spread[int(number)] = own
        return self._carried(head, pool_mean[None], view)[0], spread[np.minimum(view.family, len(spread) - 1)]

    def _carried(self, head: Head, pool_means: Floats, view: View) -> Floats:
        """Means over the head's pool members (n, P) carried to the viewed candidates (n, C), family by family."""
        family = self.pool.family[head.members.cpu().numpy()]
        centre = np.repeat(np.median(pool_means, axis=1)[:, None], len(self.pool.families) + 1, axis=1)
        for number in np.unique(family):
            centre[:, number] = pool_means[:, family == number].mean(axis=1)
        group = np.minimum(view.family, centre.shape[1] - 1)
        return centre[:, group] + _spread_over(pool_means - centre[:, family], head, view, len(self.pool))

    def _outputs(self, head: Head, view: View, metric: str, features: Mapping[str, Any]) -> dict[str, Output]:
        """The auxiliary outputs of a dataset by their names."""
        relations = head.relations(str(features.get("task", "")))
        if not relations:
            return {}
        rows = torch.vstack([head.portfolio, head.auxiliary]).cpu().numpy().astype(float)  # (1 + O, P)
        target, *others = self._carried(head, rows, view)
        unit = self._unit(metric, features)
        return {
            name: Output(
                r, other - r.loading * target, unit if name.startswith("@") else self._unit(name, features), unit
            )
            for (name, r), other in zip(relations.items(), others, strict=True)
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``weights.safetensors`` and ``card.json`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "weights.safetensors")
        heads = [*self.heads, *([self.seconds_head] if self.seconds_head is not None else [])]
        structure_card = {
            "encoder": self.encoder.spec,
            "pool": {
                "candidates": self.pool.candidates,
                "encoder": self.pool.encoder.families,
                "length_scale": self.pool.length_scale,
            },
            "learners": [{"kind": type(m).__name__, "sizes": _sizes(m)} for m in self.learners],
            "novelty": None if self.novelty is None else self.novelty.sizes,
            "memory": None if self.memory is None else {"sizes": self.memory.sizes, "names": self.memory.names},
            "metrics": self.metrics,
            "heads": [{"sizes": h.sizes, "settings": h.settings} for h in heads if isinstance(h, Head)],
        }
        card = {"format": "autometa-meta-model", "format_version": FORMAT_VERSION, **self.card}
        (folder / "card.json").write_text(json.dumps({**card, "structure": structure_card}, indent=1), "utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> MetaModel:
        """What :meth:`save` wrote.

        Raises
        ------
        ArtefactError
            A file is missing, damaged, too large or of another format.
        """
        state, card = read_saved(
            folder, weights="weights.safetensors", card="card.json", kind="meta-model", format_version=FORMAT_VERSION
        )
        try:
            model = _build(cls, card)
            model.load_state_dict(state)
        except Exception as error:
            raise ArtefactError(f"The meta-model in {str(folder)!r} cannot be read: {error}") from error
        return model


def structure(pool: CandidatePool, members: Any, weights: Sequence[float]) -> Floats:
    """Correlation by family and hyperparameters: weights of (all, same family, near configuration, itself)."""
    family, vectors = pool.family[members], pool.vectors[members]
    same = (family[:, None] == family).astype(float)
    near = (2 * kernel(vectors, vectors, pool.length_scale) - 1) * same
    return np.asarray(weights[0] + weights[1] * same + weights[2] * near + weights[3] * np.eye(len(family)))


def _spread_over(rows: Any, head: Head, view: View, n_pool: int) -> Floats:
    """Rows over the head's pool members (n, P) carried to the viewed candidates (n, C)."""
    full = np.zeros((len(rows), n_pool), dtype=rows.dtype)
    full[:, head.members.cpu().numpy()] = rows
    if (view.member >= 0).all():
        return np.asarray(full[:, view.member])
    result = np.zeros((len(rows), len(view.member)), dtype=rows.dtype)
    inside = view.member >= 0
    result[:, inside] = full[:, view.member[inside]]
    for at, known, weights in view.blocks:
        result[:, at] = full[:, known] @ weights.T.astype(rows.dtype)
    return result


def _scaled(covariance: Covariance, factor: float) -> Covariance:
    if factor == 1:
        return covariance
    c = covariance
    return Covariance(c.root * factor, c.spread, c.family, c.vectors, c.bridge, c.length_scale)


_KINDS: dict[str, Any] = {"Ridge": Ridge, "Forest": Forest, "MLPBag": MLPBag}


def _sizes(module: nn.Module) -> Any:
    return list(module.coef.shape) if isinstance(module, Ridge) else module.sizes


def _build(cls: type[MetaModel], card: Mapping[str, Any]) -> MetaModel:
    """An empty model of the shape that a card describes."""
    s = card["structure"]
    learners: list[nn.Module] = []
    for spec in s["learners"]:
        kind, sizes = _KINDS[spec["kind"]], spec["sizes"]
        if kind is Ridge:
            learners.append(Ridge(sizes[0] - 1, sizes[1]))
        else:
            learners.append(kind(**sizes) if isinstance(sizes, dict) else kind(*sizes))
    heads = []
    for spec in s["heads"]:
        sizes = dict(spec["sizes"])
        head = Head(sizes.pop("n_outputs"), sizes.pop("n_pool"), **sizes)
        head.settings = spec["settings"]
        heads.append(head)
    pool = CandidatePool(
        [tuple(c) for c in s["pool"]["candidates"]], ConfigEncoder(s["pool"]["encoder"]),
        length_scale=s["pool"]["length_scale"],
    )  # fmt: skip
    n, kept = len(s["metrics"]), s.get("memory")  # models of before there was a memory have none
    known = {k: v for k, v in card.items() if k not in {"structure", "format", "format_version"}}
    return cls(
        FeatureEncoder(**s["encoder"]), pool, learners=learners, heads=dict(zip(s["metrics"], heads[:n], strict=True)),
        seconds_head=heads[n] if len(heads) > n else None,
        novelty=None if s["novelty"] is None else Novelty(*s["novelty"]),
        memory=None if kept is None else TaskMemory(**kept["sizes"], names=kept["names"]), card=known,
    )  # fmt: skip
