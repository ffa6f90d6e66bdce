"""Backward passes through frozen layers where there is a gradient: the same numbers with fewer multiplications."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from curvature.test_ggn import ANSWERS, CLASSES, causal, classifier, text_batch
from varlora.curvature import curvature_of, sparse_backward
from varlora.curvature.sparse_backward import nonzero_rows


@pytest.fixture(autouse=True)
def _every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_backward, "_SMALLEST", 1)


def multiplied(layer: nn.Linear, x: Tensor, positions: slice) -> tuple[Tensor, int]:
    """Gradient of a layer's input, read at some positions, and the operations of the backward pass."""
    y = layer(x)
    with FlopCounterMode(display=False) as counter:
        (gradient,) = torch.autograd.grad(y[positions].square().sum(), x)
    return gradient, counter.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_is_the_dense_one_at_the_cost_of_the_positions_read(dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 6, dtype=dtype).requires_grad_(False)
    x = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    for positions, share in ((slice(0, 1), 0.5), (slice(0, 2), 1.0)):
        expected, all_of_it = multiplied(layer, x, positions)
        with sparse_backward.sparse_backward(layer):
            found, some_of_it = multiplied(layer, x, positions)
        torch.testing.assert_close(found, expected)
        assert found.dtype == dtype
        assert some_of_it == share * all_of_it
    assert "forward" not in layer.__dict__


def test_a_layer_that_trains_or_has_its_own_forward_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2).requires_grad_(False))
    own = model[2].forward = model[2].forward
    with sparse_backward.sparse_backward(model):
        assert "forward" not in model[0].__dict__
        assert "forward" in model[1].__dict__
        assert model[2].forward is own
    assert model[2].forward is own


def test_a_row_that_is_not_a_number_is_a_row() -> None:
    found = nonzero_rows(torch.tensor([[0.0, 0.0], [torch.nan, 0.0], [0.0, -1.0], [0.0, 0.0]]))
    assert found is not None
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize("structure", ["diag", "kron"])
@pytest.mark.parametrize(("make", "readout"), [(classifier, CLASSES), (causal, ANSWERS)])
def test_the_curvature_is_the_dense_one(make, readout, structure: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    model = make().double()
    with FlopCounterMode(display=False) as few:
        found = curvature_of(model, [text_batch()], readout=readout, structure=structure)  # type: ignore[arg-type]
    monkeypatch.setattr(sparse_backward, "_SMALLEST", 10**6)
    with FlopCounterMode(display=False) as many:
        expected = curvature_of(model, [text_batch()], readout=readout, structure=structure)  # type: ignore[arg-type]
    assert few.get_total_flops() < many.get_total_flops()
    for key, values in expected.eigenvalues.items():
        torch.testing.assert_close(found.eigenvalues[key], values, rtol=1e-9, atol=1e-14)
