"""The torch modules: shapes, one forward pass, no hidden state."""

from __future__ import annotations

import pytest
import torch
from rtdl_num_embeddings import compute_bins

from autometa.nets.ensemble import EnsembleMLP
from autometa.nets.mlp import ACTIVATIONS, MLP, NUMERICAL_EMBEDDINGS, TableInput

SIZES = (3, 5)


def make_input(kind: str, sizes: tuple[int, ...] = SIZES, n_numeric: int = 4) -> tuple[TableInput, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(32, n_numeric, generator=generator)
    codes = torch.stack([torch.randint(0, size, (32,), generator=generator) for size in sizes], 1) if sizes else None
    bins = compute_bins(numbers, n_bins=4) if n_numeric and kind == "piecewise_linear" else None
    table_input = TableInput(n_numeric, sizes, numerical_embedding=kind, bins=bins)
    return table_input, numbers if codes is None else torch.cat([codes.float(), numbers], 1)


@pytest.mark.parametrize("kind", NUMERICAL_EMBEDDINGS)
@pytest.mark.parametrize("sizes", [(), SIZES])
@pytest.mark.parametrize("n_numeric", [0, 4])
def test_input_has_the_announced_size(kind, sizes, n_numeric):
    if not sizes and not n_numeric:
        with pytest.raises(ValueError, match="at least one input column"):
            TableInput(0, ())
        return
    table_input, x = make_input(kind, sizes, n_numeric)
    assert table_input(x).shape == (32, table_input.n_outputs)
    assert len(table_input.chunks) == len(sizes) + n_numeric


@pytest.mark.parametrize("kind", NUMERICAL_EMBEDDINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_shape(kind, activation):
    table_input, x = make_input(kind)
    net = MLP(table_input, 3, hidden_sizes=(8, 6), activation=activation, dropout=0.1)
    assert net(x).shape == (32, 3)


@pytest.mark.parametrize("kind", NUMERICAL_EMBEDDINGS)
def test_ensemble_shape_and_members_differ(kind):
    table_input, x = make_input(kind)
    net = EnsembleMLP(table_input, 3, n_members=4, n_layers=2, width=16).eval()
    output = net(x)
    assert output.shape == (32, 4, 3)
    assert not torch.allclose(output[:, 0], output[:, 1])


@pytest.mark.parametrize("kind", NUMERICAL_EMBEDDINGS)
def test_mlp_runs_with_weights_written_by_another(kind):
    table_input, x = make_input(kind)
    net = MLP(table_input, 2, hidden_sizes=(8,)).eval()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    written = {name: torch.zeros_like(p) for name, p in before.items()}
    written["output.bias"] = torch.tensor([1.0, -1.0])
    output = torch.func.functional_call(net, written, (x,))
    assert torch.equal(output, torch.tensor([[1.0, -1.0]]).expand(32, 2))
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_gradients_through_functional_call_and_vmap_over_nets():
    table_input, x = make_input("none")
    net = MLP(table_input, 2, hidden_sizes=(8,))
    stacked = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in net.named_parameters()}
    output = torch.func.vmap(lambda weights: torch.func.functional_call(net, weights, (x,)))(stacked)
    assert output.shape == (2, 32, 2)
    torch.testing.assert_close(output[0], net(x))


def test_columns_do_not_share_embeddings():
    table_input = TableInput(0, (2, 2))
    answer = table_input(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert not torch.allclose(answer[0, :8], answer[1, 8:])


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: TableInput(2, numerical_embedding="spline"), "numerical_embedding must be one of"),
        (lambda: TableInput(2, numerical_embedding="piecewise_linear"), "needs the bin edges"),
        (lambda: MLP(TableInput(2), 1, activation="step"), "activation must be one of"),
    ],
)
def test_bad_arguments(build, match):
    with pytest.raises(ValueError, match=match):
        build()
