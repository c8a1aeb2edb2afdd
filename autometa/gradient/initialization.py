"""Births: where the weights of a net come from before the first gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

BIRTHS = ("random",)
"""Names of the births."""

Net = TypeVar("Net", bound=nn.Module)


def initialize(make_net: Callable[[], Net], *, init: str = "random", seed: int = 0) -> Net:
    """A net with its first weights.

    Parameters
    ----------
    make_net : callable
        Builds the net on the CPU; its layers draw their weights as they are built.
    init : {"random"}, default "random"
        "random": what the layers draw, from a generator seeded with ``seed``.
    seed : int, default 0
        The same seed gives the same weights; the global random state is left as it was.

    Raises
    ------
    ValueError
        The birth is unknown.
    """
    if init not in BIRTHS:
        raise ValueError(f"init must be one of {', '.join(BIRTHS)}. Got {init!r} instead.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make_net()
