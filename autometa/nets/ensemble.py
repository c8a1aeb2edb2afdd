"""A parameter-efficient ensemble of MLPs: K nets that share most of their weights."""

from __future__ import annotations

import tabm
from torch import Tensor, nn

from autometa.nets.mlp import TableInput


class EnsembleMLP(nn.Module):
    """K multilayer perceptrons trained side by side, by the package ``tabm``.

    Parameters
    ----------
    table_input : TableInput
        Shared by the members.
    n_outputs : int
        Classes, or 1 for regression.
    n_members : int, default 8
    n_layers, width : int, default 2 and 128
    dropout : float, default 0.1

    Shape
    -----
    (N, F) -> (N, K, n_outputs).

    References
    ----------
    Gorishniy et al., TabM: advancing tabular deep learning with parameter-efficient ensembling, 2025.
    """

    def __init__(
        self,
        table_input: TableInput,
        n_outputs: int,
        *,
        n_members: int = 8,
        n_layers: int = 2,
        width: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.table_input = table_input
        self.view = tabm.EnsembleView(k=n_members)
        self.hidden = tabm.make_tabm_backbone(
            d_in=table_input.n_outputs, n_blocks=n_layers, d_block=width, dropout=dropout, k=n_members,
            start_scaling_init="random-signs" if table_input.numerical is None else "normal",
            start_scaling_init_chunks=table_input.chunks,
        )  # fmt: skip
        self.output = tabm.LinearEnsemble(width, n_outputs, k=n_members)

    def forward(self, x: Tensor) -> Tensor:  # (N, F) -> (N, K, C)
        x = self.table_input(x)  # (N, D)
        x = self.hidden(self.view(x))  # (N, K, H)
        answer: Tensor = self.output(x)  # (N, K, C)
        return answer
