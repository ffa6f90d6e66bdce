"""Variational Adam's step: torch's AdamW, bit for bit (in IVON: tests of `ivon/optimizer.py`)."""

from __future__ import annotations

import pytest
import torch

from varlora.ivon.adam_update import adam_update_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs_adamw(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 7, generator=generator, dtype=dtype)
    momentum, second = torch.zeros_like(mean), torch.zeros_like(mean)
    twin = torch.nn.Parameter(mean.clone())
    adamw = torch.optim.AdamW([twin], lr=3e-2, betas=(0.8, 0.98), eps=1e-5, weight_decay=0.0, foreach=False)
    for step in range(1, 30):
        gradient = torch.randn(5, 7, generator=generator, dtype=dtype) * 10.0 ** -(step % 5)
        momentum.lerp_(gradient, 1 - 0.8)
        options = {"lr": 3e-2, "beta1": 0.8, "beta2": 0.98, "eps": 1e-5}
        adam_update_([mean], [momentum], [second], [gradient], step=step, **options)
        twin.grad = gradient
        adamw.step()
        assert torch.equal(mean, twin.detach())
