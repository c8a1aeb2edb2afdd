"""Training of a task memory: episodes over sequences of tasks, each read with the memory as it stood before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from autometa.meta_dataset import MetaDataset
from autometa.meta_model.belief import Floats
from autometa.meta_model.memory import TaskMemory
from autometa.meta_model.model import Head, MetaModel

_WARM_UP = 0.25
"""Share of an episode whose tasks are read but not scored: an empty memory has nothing to say."""


@dataclass(frozen=True)
class MemoryOptions:
    """Choices of :func:`train_memory`.

    Parameters
    ----------
    n_heads, n_keys, dropout
        See :class:`TaskMemory`.
    n_episodes : int
        Task sequences, one gradient step each.
    learning_rate, weight_decay : float
        Of AdamW; the rate decays to zero by a cosine.
    """

    n_heads: int = 8
    n_keys: int = 16
    dropout: float = 0.5
    n_episodes: int = 300
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True, eq=False)
class _Episodes:
    """Tasks of one metric: inputs (N, D), values (N, R) of unit mean length, related pairs (N, N)."""

    inputs: Tensor
    values: Tensor
    related: Tensor


def train_memory(
    meta_dataset: MetaDataset, model: MetaModel, *, seed: int = 0, options: MemoryOptions | None = None
) -> TaskMemory:
    """A memory of the training tasks of a meta-model, its attention trained on their order.

    Minimises the sum over t of L_t(f(M_{t-1}, x_t)): in each episode the tasks of one metric come in a random order,
    and the surprise of each is predicted by reading the ones before it, related datasets excepted. The surprises are
    the cross-fitted errors of the meta-model, so the memory learns what the meta-model does not know.

    Parameters
    ----------
    meta_dataset : MetaDataset
        The one that the meta-model was trained on.
    model : MetaModel
    seed : int
        The same seed gives the same memory.
    options : MemoryOptions, optional

    Raises
    ------
    ValueError
        The meta-model was trained on other datasets.
    """
    options = options or MemoryOptions()
    rows = residual_rows(meta_dataset, model)
    inputs = model.encoder(meta_dataset.meta_features)  # (N, D)
    memory = TaskMemory(
        inputs.shape[1], len(model.pool), metrics=model.metrics, n_heads=options.n_heads, n_keys=options.n_keys,
        dropout=options.dropout,
    )  # fmt: skip
    memory.initialise(torch.Generator().manual_seed(seed))
    groups = pd.factorize(meta_dataset.groups)[0].astype(np.int64)
    position = {name: i for i, name in enumerate(meta_dataset.datasets)}
    parts = []
    for table in rows.values():
        at = [position[name] for name in table.index]
        parts.append(_episodes(inputs[at], table.to_numpy(), groups[at]))
    if inputs.shape[1]:
        _fit(memory, [p for p in parts if len(p.inputs) > 3], seed, options)
    for name, x in zip(meta_dataset.datasets, inputs, strict=True):
        values = {metric: table.loc[name].to_numpy() for metric, table in rows.items() if name in table.index}
        if values:
            memory = memory.write(name, x, values)
    return memory.eval()


def residual_rows(meta_dataset: MetaDataset, model: MetaModel) -> dict[str, pd.DataFrame]:
    """Cross-fitted errors of the meta-model on its own training datasets: metric -> (datasets, pool)."""
    if tuple(model.card.get("trained_on", ())) != meta_dataset.datasets:
        raise ValueError("The meta-model must have been trained on this meta-dataset. Got one of other datasets.")
    tables = {}
    for metric, head in zip(model.metrics, model.heads, strict=True):
        assert isinstance(head, Head)
        names = list(meta_dataset.score_table(metric).index)
        table = np.zeros((len(names), len(model.pool)))
        table[:, head.members.numpy()] = head.residuals.numpy()
        tables[metric] = pd.DataFrame(table, index=names)
    return tables


def _episodes(inputs: Tensor, values: Floats, groups: NDArray[np.int64]) -> _Episodes:
    # Principal components keep every distance, and there are at most as many as tasks.
    u, s, _ = np.linalg.svd(values, full_matrices=False)
    components = torch.from_numpy(u * s).to(torch.float32)  # (N, R)
    size = components.square().sum(dim=1).mean().sqrt().clamp(min=1e-9)
    code = torch.from_numpy(groups)
    return _Episodes(inputs, components / size, code[:, None] == code)


def _fit(memory: TaskMemory, parts: list[_Episodes], seed: int, options: MemoryOptions) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.array([len(part.inputs) for part in parts], dtype=float)
    optimiser = torch.optim.AdamW(memory.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.n_episodes)
    memory.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(options.n_episodes if parts else 0):
            part = parts[rng.choice(len(parts), p=sizes / sizes.sum())]
            loss = _episode_loss(memory, part, torch.from_numpy(rng.permutation(len(part.inputs))))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    memory.eval()


def _episode_loss(memory: TaskMemory, part: _Episodes, order: Tensor) -> Tensor:
    """Mean squared error of the reads, every task with the memory as it stood before it."""
    x, values = part.inputs[order], part.values[order]  # (N, D), (N, R)
    before = torch.ones(len(order), len(order), dtype=torch.bool).tril(diagonal=-1)  # (N, N)
    read = memory.read(x, x, values, before & ~part.related[order][:, order])  # (N, R)
    return (read - values).square().sum(dim=1)[int(_WARM_UP * len(order)) :].mean()
