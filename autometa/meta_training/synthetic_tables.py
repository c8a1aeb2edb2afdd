"""A prior over tables: synthetic tasks whose structure, noise and dirt are drawn at random.

Many small tasks are drawn at once: those of one draw share the discrete choices (which kind of structure, how many
layers), each has its own weights. The kinds are in the spirit of Hollmann et al., TabPFN, 2023 (structural causal
models as priors over tables).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

_TASKS_A_DRAW = 12
_MAX_LEVELS = 8
_T = TypeVar("_T")


class Dice:
    """Random draws from one seeded generator.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.generator)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers whose logarithm is uniform."""
        return torch.exp(self.uniform(*shape) * math.log(high / low) + math.log(low))

    def integer(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (1,), generator=self.generator))

    def integers(self, n: int, *shape: int) -> Tensor:
        """Whole numbers from 0 to n - 1."""
        return torch.randint(0, n, shape, generator=self.generator)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.uniform(1) < probability)

    def pick(self, options: Sequence[_T]) -> _T:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def orders(self, b: int, n: int) -> Tensor:
        """A permutation of n for each of b tasks, (b, n)."""
        return self.uniform(b, n).argsort(1)


_MECHANISMS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.tanh, torch.relu, torch.sin, torch.abs, torch.square, lambda x: x, lambda x: x, lambda x: (x > 0).float(),
    lambda x: torch.nn.functional.leaky_relu(x, 0.1), lambda x: x * torch.exp(-x.abs() / 2),
    lambda x: torch.sign(x) * x.abs().sqrt(),
)  # fmt: skip


def draw_tables(
    dice: Dice, n_tasks: int, *, n_rows: int, n_features: int, n_classes: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Tables x (B, N, F) and their targets y (B, N): class codes, or numbers where ``n_classes`` is 0.

    Columns are not standardised; a few classes may have no row. The same dice give the same tables.

    Examples
    --------
    >>> x, y = draw_tables(Dice(0), 4, n_rows=50, n_features=6, n_classes=3)
    >>> x.shape, y.shape, int(y.max()) <= 2
    (torch.Size([4, 50, 6]), torch.Size([4, 50]), True)
    """
    xs, ys = [], []
    while n_tasks > 0:
        b = min(n_tasks, _TASKS_A_DRAW)
        kind = _KINDS[int(torch.multinomial(_SHARES, 1, generator=dice.generator))]
        x, y = kind(dice, b, n_rows, n_features, n_classes)
        xs.append(_add_dirt(dice, x))
        ys.append(_add_noise(dice, y, n_classes))
        n_tasks -= b
    return torch.cat(xs), torch.cat(ys)


def _scaled(x: Tensor) -> Tensor:
    """Standardised over the rows."""
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)


def _gather(x: Tensor, columns: Tensor) -> Tensor:
    """Each task's own columns: (B, N, D), (B, k) -> (B, N, k)."""
    return x.gather(2, columns[:, None].expand(-1, x.shape[1], -1))


def _inputs(dice: Dice, b: int, n: int, f: int) -> Tensor:
    """Gaussian, uniform, heavy-tailed or clustered inputs, often correlated."""
    z = dice.normal(b, n, f)
    kind = dice.integer(0, 3)
    if kind == 1:
        z = (dice.uniform(b, n, f) - 0.5) * 3.46
    elif kind == 2:
        z = z * dice.log_uniform(0.3, 3.0, b, n, 1)
    elif kind == 3:
        m = dice.integer(2, 6)
        centres = dice.normal(b, m, f) * dice.log_uniform(0.5, 3.0, b, 1, 1)
        z = z + centres.gather(1, dice.integers(m, b, n)[..., None].expand(b, n, f))
    if dice.chance(0.6):
        z = _mixed(dice, z)
    return _scaled(z)


def _mixed(dice: Dice, z: Tensor) -> Tensor:
    """Columns mixed by a random matrix, partly."""
    b, _, f = z.shape
    share = dice.uniform(b, 1, 1)
    return z @ (share * dice.normal(b, f, f) / math.sqrt(f) + (1 - share) * torch.eye(f))


def _mlp_table(dice: Dice, b: int, n: int, f: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """A random net with noisy units; features and target are some of its units."""
    causes = _inputs(dice, b, n, dice.integer(1, max(2, min(12, f))))
    width, h = f + dice.integer(4, 24), causes
    gain, noise = dice.log_uniform(0.7, 3.0, b, 1, 1), dice.log_uniform(1e-3, 0.3, b, 1, 1)
    sparsity, layers = 0.8 * dice.uniform(b, 1, 1), []
    for _ in range(dice.integer(1, 4)):
        d = h.shape[2]
        weight = dice.normal(b, d, width) * (dice.uniform(b, d, width) > sparsity)
        weight = weight * gain / (d * (1 - sparsity)).sqrt().clamp_min(1)
        u = h @ weight + 0.5 * gain * dice.normal(b, 1, width)
        h = _scaled(torch.cat([dice.pick(_MECHANISMS)(part) for part in u.chunk(dice.integer(1, 3), -1)], -1))
        h = h + noise * dice.normal(*h.shape)
        layers.append(h)
    n_scores = dice.integer(1, 4)
    if causes.shape[2] >= 2 and dice.chance(0.35):  # the features are the causes, and some say nothing
        x = torch.cat([causes, dice.normal(b, n, f)], -1)[..., :f]
        return x, _target(dice, h[..., :n_scores], n_classes)
    units = torch.cat([causes, *layers], -1)
    units = _gather(units, dice.orders(b, units.shape[2]))
    scores = h[..., :n_scores] if dice.chance(0.5) else units[..., :n_scores]
    x = torch.cat([units[..., n_scores:], dice.normal(b, n, f)], -1)[..., :f]
    return x, _target(dice, scores, n_classes)


def _graph_table(dice: Dice, b: int, n: int, f: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """A random graph: each node is a mechanism of a few earlier ones plus noise; the target is any node."""
    n_roots, n_nodes = dice.integer(1, max(2, f // 2)), f + dice.integer(2, 8)
    nodes = torch.zeros(b, n, n_nodes)
    nodes[..., :n_roots] = _inputs(dice, b, n, n_roots)
    noise = dice.log_uniform(0.03, 1.0, b, 1, n_nodes)
    for i in range(n_roots, n_nodes):
        k = dice.integer(1, 3)
        parents = _gather(nodes, dice.integers(i, b, k)) * dice.normal(b, 1, k)
        value = parents.prod(2) if k > 1 and dice.chance(0.2) else dice.pick(_MECHANISMS)(parents.sum(2))
        value = (value - value.mean(1, keepdim=True)) / (value.std(1, keepdim=True) + 1e-3)
        nodes[..., i] = value + noise[..., i] * dice.normal(b, n)
    shuffled = _gather(nodes, dice.orders(b, n_nodes))
    n_scores = 1 if dice.chance(0.7) else 2
    return shuffled[..., n_scores : n_scores + f], _target(dice, shuffled[..., :n_scores], n_classes)


def _tree_table(dice: Dice, b: int, n: int, f: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """The sum of random oblivious trees on some of the features."""
    x = _inputs(dice, b, n, f)
    n_trees, depth, n_scores = dice.integer(1, 16), dice.integer(1, 5), dice.integer(1, 3)
    n_used = max(1, math.ceil(f * float(dice.uniform(1))))
    values = _gather(x, dice.integers(n_used, b, n_trees * depth))  # (b, n, trees * depth)
    thresholds = values.gather(1, dice.integers(n, b, 1, n_trees * depth))
    bits = (values > thresholds).view(b, n, n_trees, depth).long()
    leaves = (bits * 2 ** torch.arange(depth)).sum(-1)  # (b, n, trees)
    answers = dice.normal(b, n_trees, 2**depth, n_scores) * dice.log_uniform(0.3, 1.0, 1, n_trees, 1, 1)
    index = leaves.transpose(1, 2)[..., None].expand(b, n_trees, n, n_scores)
    scores = answers.gather(2, index).sum(1)  # (b, n, scores)
    scores = scores + dice.log_uniform(1e-3, 0.3, b, 1, 1) * dice.normal(b, n, n_scores)
    return _gather(x, dice.orders(b, f)), _target(dice, scores, n_classes)


def _cluster_table(dice: Dice, b: int, n: int, f: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """Gaussian clusters, some for each class, with shares as they come; or a level for each cluster."""
    n_groups = n_classes or dice.integer(2, 8)
    m = dice.integer(1, 3)
    shares = -torch.log(dice.uniform(b, n_groups).clamp_min(1e-3)) if dice.chance(0.5) else torch.ones(b, n_groups)
    group = torch.multinomial(shares + 0.05, n, replacement=True, generator=dice.generator)  # (b, n)
    cluster = group * m + dice.integers(m, b, n)
    informative = (dice.uniform(b, 1, f) < 0.1 + 0.9 * dice.uniform(b, 1, 1)).float()
    distance = dice.log_uniform(0.4, 3.0, b, 1, 1) / math.sqrt(max(1, f / 4))
    centres = dice.normal(b, n_groups * m, f) * informative * distance
    spreads = torch.exp(0.4 * dice.normal(b, n_groups * m, f) * dice.uniform(b, 1, 1))
    index = cluster[..., None].expand(b, n, f)
    x = centres.gather(1, index) + dice.normal(b, n, f) * spreads.gather(1, index)
    if dice.chance(0.7):
        x = _mixed(dice, x)
    if n_classes:
        return x, group
    scores = dice.normal(b, n_groups * m).gather(1, cluster) + dice.uniform(b, 1) * x[..., 0]
    return x, _target(dice, scores[..., None], 0)


def _linear_table(dice: Dice, b: int, n: int, f: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """Linear scores of some features; classes by the multinomial logit model."""
    x = _inputs(dice, b, n, f)
    n_scores = n_classes or 1
    weight = dice.normal(b, f, n_scores) * (dice.uniform(b, f, 1) >= 0.8 * dice.uniform(b, 1, 1))
    scores = _scaled(x @ weight)
    if not n_classes:
        return x, _target(dice, scores, 0)
    scores = scores * dice.log_uniform(0.7, 8.0, b, 1, 1) + 0.5 * dice.normal(b, 1, n_scores)
    gumbel = -torch.log(-torch.log(dice.uniform(b, n, n_scores).clamp(1e-6, 1 - 1e-6)))
    return x, (scores + gumbel).argmax(-1)


_KINDS = (_mlp_table, _graph_table, _tree_table, _cluster_table, _linear_table)
_SHARES = torch.tensor([0.25, 0.2, 0.2, 0.2, 0.15])


def _target(dice: Dice, scores: Tensor, n_classes: int) -> Tensor:
    """Scores (b, n, t) to class codes or numbers (b, n): thresholds, the largest projection, the nearest prototype."""
    b, n, t = scores.shape
    scores = _scaled(scores)
    if not n_classes:
        return _number(dice, scores[..., 0])
    mode = dice.integer(0, 2)
    if mode == 0 or t == 1:
        return _thresholded(dice, scores[..., 0], n_classes)
    if mode == 1:
        offset = dice.normal(b, 1, n_classes) * dice.uniform(b, 1, 1)
        return (scores @ dice.normal(b, t, n_classes) + offset).argmax(-1)
    n_prototypes = n_classes * dice.integer(1, 3)
    rows = dice.integers(n, b, n_prototypes)[..., None].expand(-1, -1, t)
    return torch.cdist(scores, scores.gather(1, rows)).argmin(-1) % n_classes


def _thresholded(dice: Dice, score: Tensor, n_classes: int) -> Tensor:
    """Classes by thresholds on one score: about equal or random shares."""
    b, n = score.shape
    levels = dice.uniform(b, n_classes - 1)
    if dice.chance(0.5):
        levels = (torch.arange(1, n_classes) + 0.9 * (levels - 0.5)) / n_classes
    cuts = score.sort(1)[0].gather(1, (levels * (n - 1)).long())  # (b, classes - 1)
    codes: Tensor = (score[..., None] > cuts[:, None]).sum(-1)
    return codes


def _number(dice: Dice, score: Tensor) -> Tensor:
    """A numeric target: noise, and sometimes a skewed or rounded scale."""
    score = score + dice.log_uniform(0.02, 1.5, len(score), 1) * dice.normal(*score.shape)
    kind = dice.integer(0, 5)
    if kind == 0:
        return torch.exp(score.clamp(-4, 4) * dice.uniform(len(score), 1))
    if kind == 1:
        return torch.sign(score) * score.abs() ** (0.5 + dice.uniform(len(score), 1))
    return torch.round(score * dice.integer(1, 4)) if kind == 2 else score


def _add_noise(dice: Dice, y: Tensor, n_classes: int) -> Tensor:
    """Some labels are wrong in some tables; the order of the classes says nothing."""
    if not n_classes:
        return y
    if dice.chance(0.3):
        wrong = dice.uniform(*y.shape) < 0.2 * dice.uniform(len(y), 1)
        y = torch.where(wrong, dice.integers(n_classes, *y.shape), y)
    return dice.orders(len(y), n_classes).gather(1, y)


def _add_dirt(dice: Dice, x: Tensor) -> Tensor:
    """Skewed scales, whole numbers, indicators of categories, and missing values with their indicators."""
    b, n, f = x.shape
    x = _scaled(torch.nan_to_num(x, posinf=1e4, neginf=-1e4)).clamp(-30, 30)
    kind, power = dice.uniform(b, 1, f), torch.exp(0.5 * dice.normal(b, 1, f))
    x = torch.where(kind < 0.15, torch.sign(x) * x.abs() ** power, x)
    x = torch.where((kind > 0.15) & (kind < 0.27), torch.exp(x.clamp(-5, 3)), x)
    if dice.chance(0.3):
        levels = (2 + dice.integers(_MAX_LEVELS, b, 1, f)).float()
        whole = (x.argsort(1).argsort(1) / n * levels).floor()
        x = torch.where(dice.uniform(b, 1, f) < dice.uniform(b, 1, 1), whole, x)
    if dice.chance(0.4):
        x = _with_categories(dice, x)
    return _with_missing(dice, x) if dice.chance(0.25) else x


def _with_categories(dice: Dice, x: Tensor) -> Tensor:
    """Some columns become indicators of the levels of one of them, as an encoder writes a category."""
    b, n, f = x.shape
    parts, start = [], 0
    while start < f:
        k = dice.integer(2, _MAX_LEVELS)
        if dice.chance(0.5) or start + k > f:
            parts.append(x[..., start : start + 1])
            start += 1
            continue
        cuts = x[..., start].gather(1, dice.integers(n, b, k - 1)).sort(1)[0]  # (b, k - 1)
        level = (x[..., start, None] > cuts[:, None]).sum(-1)  # (b, n)
        indicators = torch.nn.functional.one_hot(dice.orders(b, k).gather(1, level), k).float()
        parts.append(indicators[..., :1] if k == 2 else indicators)
        start += 1 if k == 2 else k
    return torch.cat(parts, -1)


def _with_missing(dice: Dice, x: Tensor) -> Tensor:
    """Some values become the median; a column in ten tells of another where that was so."""
    b, n, f = x.shape
    rate = 0.4 * dice.uniform(b, 1, 1) * (dice.uniform(b, 1, f) < 0.5)
    missing = dice.uniform(b, n, f) < rate
    x = torch.where(missing, x.median(1, keepdim=True)[0], x)
    return torch.where(dice.uniform(b, 1, f) < 0.1, missing.float().roll(1, dims=2), x)
