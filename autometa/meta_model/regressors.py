"""Regressors of many outputs at once, kept as tensors: ridge, extra trees, a bag of MLPs.

Each maps encoded meta-features (N, D) to R outputs (the principal components of the residual scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor
from torch import Tensor, nn

Floats = NDArray[np.float64]


class Ridge(nn.Module):
    """Linear regression with an L2 penalty; ``coef`` has shape (D + 1, R), the intercept last and unpenalised."""

    coef: Tensor

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.register_buffer("coef", torch.zeros(n_inputs + 1, n_outputs))

    @classmethod
    def fit(cls, X: Floats, T: Floats, *, penalty: float) -> Ridge:
        """``penalty`` is per row, so that it means the same for any number of datasets."""
        model = cls(X.shape[1], T.shape[1])
        model.coef.copy_(torch.from_numpy(ridge_coef(X, T, penalty)))
        return model

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.coef[:-1] + self.coef[-1]  # (N, D) -> (N, R)


def ridge_coef(X: Floats, T: Floats, penalty: float) -> Floats:
    """Coefficients (D + 1, R) of a ridge regression, the intercept last and unpenalised."""
    centre, mean = X.mean(axis=0), T.mean(axis=0)
    A = X - centre
    slope = np.linalg.solve(A.T @ A + penalty * len(X) * np.eye(X.shape[1]), A.T @ (T - mean))
    return np.vstack([slope, mean - centre @ slope])


class Forest(nn.Module):
    """Extra trees as a weighting of the training datasets: how often each shares a leaf with the new one.

    Keeping memberships instead of leaf values makes the size independent of the number of outputs, and names the
    known datasets that a forecast rests on.

    Parameters
    ----------
    n_trees, n_nodes, n_datasets, n_outputs : int
        Sizes of the arrays; ``n_nodes`` counts the nodes of all trees.
    """

    roots: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    leaf_of: Tensor
    targets: Tensor

    def __init__(self, n_trees: int, n_nodes: int, n_datasets: int, n_outputs: int) -> None:
        super().__init__()
        self.register_buffer("roots", torch.zeros(n_trees, dtype=torch.int32))
        self.register_buffer("feature", torch.zeros(n_nodes, dtype=torch.int16))
        self.register_buffer("threshold", torch.zeros(n_nodes, dtype=torch.float32))
        self.register_buffer("left", torch.zeros(n_nodes, dtype=torch.int16))
        self.register_buffer("right", torch.zeros(n_nodes, dtype=torch.int16))
        self.register_buffer("leaf_of", torch.zeros(n_trees, n_datasets, dtype=torch.int16))
        self.register_buffer("targets", torch.zeros(n_datasets, n_outputs, dtype=torch.float32))

    @property
    def sizes(self) -> list[int]:
        """Arguments of the constructor."""
        return [len(self.roots), len(self.feature), *self.targets.shape]

    @classmethod
    def fit(
        cls, X: Floats, T: Floats, *, n_trees: int = 300, min_leaf: int = 3, max_features: float = 0.5, seed: int = 0
    ) -> Forest:
        """Grow extra trees (Geurts et al., 2006) on float32 inputs, without bootstrap."""
        trees = ExtraTreesRegressor(
            n_trees, min_samples_leaf=min_leaf, max_features=max_features, random_state=seed, n_jobs=1
        ).fit(X.astype(np.float32), T)
        parts = [estimator.tree_ for estimator in trees.estimators_]
        counts = [part.node_count for part in parts]
        model = cls(len(parts), sum(counts), *T.shape)
        model.roots.copy_(torch.from_numpy(np.concatenate([[0], np.cumsum(counts)[:-1]])))
        for name, attribute in (("feature", "feature"), ("left", "children_left"), ("right", "children_right")):
            getattr(model, name).copy_(torch.from_numpy(np.concatenate([getattr(p, attribute) for p in parts])))
        model.threshold.copy_(torch.from_numpy(np.concatenate([p.threshold for p in parts])))
        model.targets.copy_(torch.from_numpy(T))
        model.leaf_of.copy_(torch.from_numpy(model.leaves(X.astype(np.float32))))
        return model

    def leaves(self, X: NDArray[np.float32]) -> NDArray[np.int64]:
        """Leaf of each row in each tree, shape (n_trees, N), numbered within the tree."""
        feature, threshold = self.feature.cpu().numpy(), self.threshold.cpu().numpy()
        left, right = self.left.cpu().numpy(), self.right.cpu().numpy()
        roots = self.roots.cpu().numpy().astype(np.int64)[:, None]
        node = np.zeros((len(roots), len(X)), dtype=np.int64)
        rows = np.arange(len(X))[None, :]
        while True:
            at = roots + node
            inner = left[at] >= 0
            if not inner.any():
                return node
            goes_left = X[rows, np.maximum(feature[at], 0)] <= threshold[at]
            node = np.where(inner, np.where(goes_left, left[at], right[at]), node)

    def weights(self, X: NDArray[np.float32]) -> Floats:
        """Weight of each training dataset for each row, shape (N, n_datasets), rows sum to 1."""
        known = self.leaf_of.cpu().numpy()
        result = np.zeros((len(X), known.shape[1]))
        for i, leaf in enumerate(self.leaves(X).T):
            shared = known == leaf[:, None]
            result[i] = (shared / shared.sum(axis=1, keepdims=True)).mean(axis=0)
        return result

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.from_numpy(self.weights(x.detach().cpu().numpy())).to(self.targets)  # (N, n_datasets)
        return weights @ self.targets  # (N, R)


class MLPBag(nn.Module):
    """A bag of two-layer perceptrons with dropout, run side by side; the last layer starts at zero.

    Parameters
    ----------
    n_members : int
        Perceptrons that are averaged.
    n_inputs, n_hidden, n_outputs : int
    dropout : float
    """

    def __init__(self, n_members: int, n_inputs: int, *, n_hidden: int, n_outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = dropout
        widths = [n_inputs, n_hidden, n_hidden, n_outputs]
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(n_members, a, b)) for a, b in pairwise(widths)])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(n_members, 1, b)) for b in widths[1:]])

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments of the constructor."""
        return {
            "n_members": self.weights[0].shape[0], "n_inputs": self.weights[0].shape[1],
            "n_hidden": self.weights[0].shape[2], "n_outputs": self.weights[-1].shape[2],
        }  # fmt: skip

    def initialise(self, generator: torch.Generator) -> None:
        """He's initialisation for the hidden layers, zeros for the last."""
        for weight in list(self.weights)[:-1]:
            with torch.no_grad():
                weight.normal_(0.0, (2.0 / weight.shape[1]) ** 0.5, generator=generator)

    def each(self, x: Tensor) -> Tensor:
        """Outputs of every member; x is shared (N, D) or one batch per member (M, N, D)."""
        h = x.expand(len(self.weights[0]), *x.shape[-2:])  # (M, N, D)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)  # (M, N, H)
            if i < last:
                h = nn.functional.dropout(torch.relu(h), self.dropout, self.training)
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x).mean(dim=0)  # (N, R)

    def members(self, chosen: Sequence[int]) -> MLPBag:
        """A bag of some of the members."""
        part = MLPBag(len(chosen), self.sizes["n_inputs"], n_hidden=self.sizes["n_hidden"],
                      n_outputs=self.sizes["n_outputs"], dropout=self.dropout)  # fmt: skip
        with torch.no_grad():
            for mine, theirs in zip([*part.weights, *part.biases], [*self.weights, *self.biases], strict=True):
                mine.copy_(theirs[list(chosen)])
        return part.eval()


def fit_bag(
    X: Floats,
    T: Floats,
    rows: Sequence[NDArray[np.integer]],
    *,
    n_hidden: int = 256,
    n_steps: int = 400,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    dropout: float = 0.5,
    seed: int = 0,
) -> MLPBag:
    """Train one perceptron per entry of ``rows`` (the training rows of that member), all at once.

    Squared error, AdamW, cosine decay to zero. Members that leave out different rows share the matrix products, so
    cross-fitting costs little more than fitting.

    Parameters
    ----------
    X, T : ndarray of shape (N, D), (N, R)
    rows : sequence of int arrays
        Training rows of each member; each draws its own bootstrap sample of them.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    samples = [rng.choice(r, len(r)) for r in rows]
    inputs = torch.from_numpy(X).to(torch.float32)
    targets = torch.from_numpy(T).to(torch.float32)
    bag = MLPBag(len(rows), X.shape[1], n_hidden=n_hidden, n_outputs=T.shape[1], dropout=dropout)
    bag.initialise(generator)
    bag.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimiser = torch.optim.AdamW(bag.parameters(), lr=learning_rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
        for _ in range(n_steps):
            batch = torch.from_numpy(np.stack([rng.choice(s, batch_size) for s in samples]))  # (M, N)
            loss = (bag.each(inputs[batch]) - targets[batch]).square().sum(dim=(0, 2)).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return bag.eval()
