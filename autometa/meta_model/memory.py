"""A memory of past tasks that shifts a belief: what surprised there is expected again on similar datasets.

Keys are embeddings of the meta-features of past tasks, values are what the forecast got wrong there. Attention over
the keys says how much of each surprise a new dataset should expect. Writing a task appends a row: the next forecast
reads it, and no weight is trained. Content-based reading from an external matrix with writes at once is the idea of
memory-augmented meta-learning (Santoro et al., 2016), attention over examples that of matching networks (Vinyals et
al., 2016).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autometa.meta_model.priors import Floats

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
    names : sequence of str
        The tasks (N), oldest first; their rows are to be filled.

    Attributes
    ----------
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
        dropout: float = 0.5, names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.metrics = tuple(metrics)
        self.dropout = dropout
        self.names = tuple(map(str, names))
        n = len(self.names)
        self.projection = nn.Parameter(torch.zeros(n_heads, n_inputs, n_keys))  # (H, D, K)
        self.log_sharpness = nn.Parameter(torch.zeros(n_heads))
        self.nothing = nn.Parameter(torch.ones(n_heads))
        self.log_gain = nn.Parameter(torch.zeros(n_heads))
        self.register_buffer("inputs", torch.zeros(n, n_inputs))
        self.register_buffer("values", torch.zeros(n, len(self.metrics), n_pool, dtype=torch.float16))
        self.register_buffer("known", torch.zeros(n, len(self.metrics), dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> dict[str, Any]:
        """Arguments of the constructor but the names, as JSON."""
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
        memory = TaskMemory(**self.sizes, names=names)
        memory.inputs, memory.values, memory.known = inputs, values, known
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
