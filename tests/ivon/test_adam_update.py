"""Variational Adam's step: torch's fused Adam, bit for bit (in IVON: tests of `ivon/optimizer.py`)."""

from __future__ import annotations

import pytest
import torch

from varlora.ivon.adam_update import adam_update_


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs_adam(dtype: torch.dtype, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 7, generator=generator, dtype=dtype)
    momentum, second = torch.zeros_like(mean), torch.zeros_like(mean)
    twin = torch.nn.Parameter(mean.clone())
    options = {"lr": 3e-2, "eps": 1e-5}
    adam = torch.optim.Adam([twin], betas=(0.8, 0.98), weight_decay=decay, fused=True, **options)
    for step in range(1, 30):
        gradient = torch.randn(5, 7, generator=generator, dtype=dtype) * 10.0 ** -(step % 5)
        twin.grad = gradient.clone()
        held = ([mean], [momentum], [second], [gradient])
        adam_update_(*held, steps=[torch.tensor(float(step))], beta1=0.8, beta2=0.98, decay=decay, **options)
        adam.step()
        assert torch.equal(mean, twin.detach())


@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["mean", "momentum", "second moment", "gradient"])
def test_tensors_that_are_not_contiguous_are_stepped_as_copies_would_be(which: int) -> None:
    around = torch.zeros(5, 14)
    held = [torch.full((5, 7), value) for value in (1.0, 0.1, 0.3, 2.0)]
    around[:, ::2] = held[which]
    strided = [around[:, ::2] if i == which else tensor.clone() for i, tensor in enumerate(held)]
    for tensors in (held, strided):
        lists = ([tensor] for tensor in tensors)
        adam_update_(*lists, steps=[torch.tensor(3.0)], lr=1e-2, beta1=0.8, beta2=0.98, eps=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(strided, held, strict=True))
    assert not around[:, 1::2].any()
