"""A memory of past tasks that shifts a belief: what surprised there is expected again on similar datasets.

Keys are embeddings of the meta-features of past tasks, values are what the forecast got wrong there. Attention over
the keys says how much of each surprise a new dataset should expect. Writing a task appends a row: the next forecast
reads it, and no weight is trained. Content-based reading from an external matrix with writes at once is the idea of
memory-augmented meta-learning (Santoro et al., 2016), attention over examples that of matching networks (Vinyals et
al., 2016).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autometa.exceptions import ArtefactError
from autometa.family import Candidate
from autometa.meta_model.belief import Belief, Floats
from autometa.meta_model.model import MAX_WEIGHT_BYTES, MetaModel

FORMAT_VERSION = 1
_CONTRAST = 4.0


class TaskMemory(nn.Module):
    """External memory of past tasks, read by attention. Made by :func:`autometa.meta_training.memory.train_memory`.

    Each of H heads embeds meta-features on a sphere and compares by the cosine. A learned share of the attention goes
    to nothing, so that a dataset unlike all known ones keeps its forecast.

    Parameters
    ----------
    n_inputs, n_pool : int
        Width of the encoded meta-features (D) and of the candidate pool (P) of the meta-model that it serves.
    metrics : sequence of str
    n_heads, n_keys : int
        Attention heads (H) and width of a key (K).
    dropout : float
        Share of the meta-features hidden from a head in each training step.

    Attributes
    ----------
    names : tuple of str
        The tasks (N), oldest first.
    inputs : Tensor of shape (N, D)
    values : Tensor of shape (N, M metrics, P), float16
        Normalised score minus forecast; zeros where nothing is known.
    known : Tensor of shape (N, M), bool
        Which metrics a task was measured by.
    """

    inputs: Tensor
    values: Tensor
    known: Tensor

    def __init__(
        self, n_inputs: int, n_pool: int, *, metrics: Sequence[str], n_heads: int = 8, n_keys: int = 16,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.metrics = tuple(metrics)
        self.dropout = dropout
        self.names: tuple[str, ...] = ()
        self.projection = nn.Parameter(torch.zeros(n_heads, n_inputs, n_keys))  # (H, D, K)
        self.log_sharpness = nn.Parameter(torch.zeros(n_heads))
        self.nothing = nn.Parameter(torch.ones(n_heads))
        self.log_gain = nn.Parameter(torch.zeros(n_heads))
        self.register_buffer("inputs", torch.zeros(0, n_inputs))
        self.register_buffer("values", torch.zeros(0, len(self.metrics), n_pool, dtype=torch.float16))
        self.register_buffer("known", torch.zeros(0, len(self.metrics), dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON."""
        n_heads, n_inputs, n_keys = self.projection.shape
        return {
            "n_inputs": n_inputs, "n_pool": self.values.shape[2], "metrics": list(self.metrics), "n_heads": n_heads,
            "n_keys": n_keys, "dropout": self.dropout,
        }  # fmt: skip

    def initialise(self, generator: torch.Generator) -> None:
        """Random keys: cosines of random projections are unbiased, so an untrained memory is already a neighbour."""
        with torch.no_grad():
            self.projection.normal_(0.0, self.projection.shape[1] ** -0.5, generator=generator)

    def attention(self, queries: Tensor, inputs: Tensor, allowed: Tensor) -> Tensor:
        """Weights of past tasks for each query, shape (H, B, N); a row sums to less than 1, the rest is for nothing.

        Parameters
        ----------
        queries, inputs : Tensor of shape (B, D), (N, D)
            Encoded meta-features.
        allowed : bool Tensor of shape (B, N)
            Which past tasks each query may read.
        """
        projection: Tensor = self.projection
        if self.training and self.dropout > 0:
            seen = torch.rand(projection.shape[:2], device=projection.device) > self.dropout  # (H, D)
            projection = projection * seen[:, :, None]
        q = nn.functional.normalize(torch.einsum("bd,hdk->hbk", queries, projection), dim=-1)
        k = nn.functional.normalize(torch.einsum("nd,hdk->hnk", inputs, projection), dim=-1)
        logits = _CONTRAST * self.log_sharpness.exp()[:, None, None] * (q @ k.transpose(1, 2))  # (H, B, N)
        logits = logits.masked_fill(~allowed, -torch.inf)
        # The logarithm of the number of tasks keeps the share of nothing the same as the memory grows.
        nothing = self.nothing[:, None] + allowed.sum(dim=1).clamp(min=1).log()  # (H, B)
        return torch.softmax(torch.cat([logits, nothing[:, :, None]], dim=2), dim=2)[:, :, :-1]

    def read(self, queries: Tensor, inputs: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """Expected values (B, R) of the queries from the values (N, R) of past tasks."""
        weights = self.attention(queries, inputs, allowed) * self.log_gain.exp()[:, None, None]  # (H, B, N)
        return weights.mean(dim=0) @ values  # (B, R)

    def forward(self, queries: Tensor, metric: str | None = None) -> Tensor:
        """Shift of the normalised scores of the pool, shape (B, P), for encoded meta-features (B, D)."""
        number = self._number(metric)
        allowed = self.known[:, number].expand(len(queries), -1)  # (B, N)
        return self.read(queries, self.inputs, self.values[:, number].to(queries.dtype), allowed)

    def _number(self, metric: str | None) -> int:
        metric = self.metrics[0] if metric is None else metric
        if metric not in self.metrics:
            raise ValueError(f"metric must be one of {', '.join(self.metrics)}. Got {metric!r} instead.")
        return self.metrics.index(metric)

    @torch.no_grad()
    def write(self, name: str, inputs: Tensor, values: Mapping[str, Floats]) -> TaskMemory:
        """A memory with one more task; nothing is trained. A task of the same name is replaced.

        Parameters
        ----------
        name : str
            Name or content fingerprint.
        inputs : Tensor of shape (D,) or (1, D)
            Encoded meta-features.
        values : mapping of metric to ndarray of shape (P,)
            Normalised score minus forecast of the pool.

        Raises
        ------
        ValueError
            No metric that the memory knows, or a value that is not finite.
        """
        rows = {m: np.asarray(v, dtype=float) for m, v in values.items() if m in self.metrics}
        if not rows or not all(np.isfinite(v).all() for v in rows.values()):
            raise ValueError(
                f"values must hold finite numbers for one of {', '.join(self.metrics)}. Got {list(values)}."
            )
        value, known = self.values.new_zeros(self.values.shape[1:]), self.known.new_zeros(len(self.metrics))
        for metric, row in rows.items():
            value[self._number(metric)] = torch.from_numpy(np.clip(row, -10, 10)).to(value)  # (P,)
            known[self._number(metric)] = True
        kept = [i for i, other in enumerate(self.names) if other != name]
        return self._with_rows(
            (*(self.names[i] for i in kept), name),
            torch.cat([self.inputs[kept], inputs.reshape(1, -1).to(self.inputs)]),
            torch.cat([self.values[kept], value[None]]),
            torch.cat([self.known[kept], known[None]]),
        )

    def _with_rows(self, names: tuple[str, ...], inputs: Tensor, values: Tensor, known: Tensor) -> TaskMemory:
        """The same weights over other tasks."""
        memory = TaskMemory(**self.sizes)
        memory.inputs, memory.values, memory.known = inputs, values, known
        memory.names = names
        for mine, theirs in zip(memory.parameters(), self.parameters(), strict=True):
            mine.data = theirs.data
        return memory.eval()

    def shuffled(self, seed: int = 0) -> TaskMemory:
        """A control: every key with the values of another task that was measured by the same metrics."""
        order = np.arange(len(self))
        rng = np.random.default_rng(seed)
        patterns = self.known.cpu().numpy()
        for pattern in np.unique(patterns, axis=0):
            at = rng.permutation(np.flatnonzero((patterns == pattern).all(axis=1)))
            order[at] = np.roll(at, 1)
        return self._with_rows(self.names, self.inputs, self.values[order], self.known[order])

    def subset(self, names: Iterable[str]) -> TaskMemory:
        """Only these tasks."""
        wanted = set(names)
        at = [i for i, name in enumerate(self.names) if name in wanted]
        kept = tuple(self.names[i] for i in at)
        return self._with_rows(kept, self.inputs[at], self.values[at], self.known[at])

    @torch.no_grad()
    def nearest(self, inputs: Tensor, metric: str | None = None, n: int = 5) -> list[tuple[str, float]]:
        """The tasks that a dataset (1, D) reads most, with their share of the attention."""
        allowed = self.known[:, self._number(metric)].expand(len(inputs), -1)
        weights = self.attention(inputs, self.inputs, allowed).mean(dim=0)[0].cpu().numpy()  # (N,)
        return [(self.names[i], float(weights[i])) for i in np.argsort(-weights)[:n]]

    def save(self, folder: str | Path) -> Path:
        """Write ``memory.safetensors`` and ``memory.json`` into a folder, the one of its meta-model say."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "memory.safetensors")
        card = {"format": "autometa-memory", "format_version": FORMAT_VERSION, "sizes": self.sizes, "names": self.names}
        (folder / "memory.json").write_text(json.dumps(card, indent=1), "utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> TaskMemory:
        """What :meth:`save` wrote.

        Raises
        ------
        ArtefactError
            A file is missing, damaged, too large or of another format.
        """
        state, card = load_artefact(folder, "memory", FORMAT_VERSION)
        try:
            memory = cls(**card["sizes"])
            n = len(card["names"])
            empty = {"inputs", "values", "known"}
            for name in empty:
                setattr(memory, name, getattr(memory, name).new_zeros((n, *getattr(memory, name).shape[1:])))
            memory.load_state_dict(state)
            memory.names = tuple(str(name) for name in card["names"])
        except Exception as error:
            raise ArtefactError(f"The memory in {str(folder)!r} cannot be read: {error}") from error
        return memory.eval()


def load_artefact(folder: str | Path, stem: str, format_version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of ``<stem>.safetensors`` and ``<stem>.json``, checked.

    Raises
    ------
    ArtefactError
        A file is missing, damaged, too large or of another format.
    """
    folder = Path(folder)
    weights_path, card_path = folder / f"{stem}.safetensors", folder / f"{stem}.json"
    for path in (weights_path, card_path):
        if not path.is_file():
            raise ArtefactError(f"The folder must hold {path.name}. There is none in {str(folder)!r}.")
    if weights_path.stat().st_size > MAX_WEIGHT_BYTES:
        raise ArtefactError(f"{weights_path.name} must be at most {MAX_WEIGHT_BYTES} bytes large. It is larger.")
    try:
        card = json.loads(card_path.read_text("utf-8"))
        found = card.get("format_version")
        state = load_file(weights_path)
    except Exception as error:
        raise ArtefactError(f"The {stem} in {str(folder)!r} cannot be read: {error}") from error
    if found != format_version:
        raise ArtefactError(f"The {stem} must have format version {format_version}. Got {found!r}.")
    return state, card


@torch.no_grad()
def shift(
    memory: TaskMemory,
    model: MetaModel,
    *,
    meta_features: pd.Series | Mapping[str, Any],
    candidates: Sequence[Candidate],
    metric: str | None = None,
) -> Floats:
    """What the memory adds to the forecast of each candidate, normalised units, shape (C,).

    Candidates outside the pool are read through their neighbours of the same family, those of an unknown family get 0.
    """
    if len(memory) == 0:
        return np.zeros(len(candidates))
    x = model.encoder(meta_features)  # (1, D)
    pool = memory(x, metric or model.metrics[0])[0].numpy().astype(float)  # (P,)
    return _carried(pool, model, candidates)


def _carried(pool: Floats, model: MetaModel, candidates: Sequence[Candidate]) -> Floats:
    """Numbers of the pool (P,) carried to candidates (C,)."""
    view = model.pool.view(candidates, np.ones(len(pool), dtype=bool))
    inside: NDArray[np.bool_] = view.member >= 0
    result = np.zeros(len(candidates))
    result[inside] = pool[view.member[inside]]
    for at, known, weights in view.blocks:
        centre = pool[known].mean()
        result[at] = centre + weights @ (pool[known] - centre)
    return result


def recall(
    memory: TaskMemory | None,
    model: MetaModel,
    *,
    meta_features: pd.Series | Mapping[str, Any],
    candidates: Sequence[Candidate],
    metric: str | None = None,
) -> Belief:
    """The belief of a meta-model with its mean shifted by what a memory recalls.

    Parameters
    ----------
    memory : TaskMemory or None
        ``None``: the belief of the meta-model alone.
    model : MetaModel
    meta_features, candidates, metric
        As in :meth:`MetaModel.belief`.
    """
    belief = model.belief(meta_features, candidates, metric=metric)
    if memory is None:
        return belief
    moved = shift(memory, model, meta_features=meta_features, candidates=candidates, metric=metric)
    return replace(belief, prior=replace(belief.prior, mean=belief.prior.mean + moved))


def surprise(
    model: MetaModel,
    meta_features: pd.Series | Mapping[str, Any],
    *,
    candidates: Sequence[Candidate],
    raw_scores: Floats,
    metric: str | None = None,
    standard_errors: Floats | None = None,
) -> Floats:
    """What measured scores of a dataset say about the whole pool beyond its forecast, normalised units, shape (P,).

    The belief that has seen the scores fills the rest of the pool in raw units; then the row is normalised like those
    of the training (0 = its median, 1 = its best, at least -1), and the forecast is taken off.

    Parameters
    ----------
    candidates : sequence of Candidate
        The ones that were run, in the pool or not.
    raw_scores, standard_errors : ndarray of shape (C,)
        Higher = better; a NaN score is a failure, a NaN error is unknown.
    """
    pool = [Candidate(family, config) for family, config in model.pool.candidates]
    before = model.belief(meta_features, [*pool, *candidates], metric=metric)
    after = before
    errors = np.full(len(raw_scores), np.nan) if standard_errors is None else np.asarray(standard_errors, dtype=float)
    for i, (score, error) in enumerate(zip(raw_scores, errors, strict=True)):
        at = len(pool) + i
        usable = bool(np.isfinite(error) and error > 0)
        after = (
            after.observe(at, float(score), standard_error=float(error) if usable else None)
            if np.isfinite(score)
            else after.observe_failure(at)
        )
    filled = after.mean[: len(pool)]
    middle = np.median(filled)
    scores = np.maximum((filled - middle) / max(filled.max() - middle, 1e-9 * max(abs(middle), 1.0)), -1.0)
    return np.asarray(scores - before.normalised_mean[: len(pool)])
