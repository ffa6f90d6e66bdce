"""A small net with a shared layer, and IVON with its noise on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from varlora import IVON, NoiseController

OPTIONS: dict[str, Any] = {"lr": 0.1, "ess": 200.0, "hess_init": 0.1, "betas": (0.9, 0.9), "weight_decay": 0.01}


class Net(nn.Module):
    """Two layers with a shared one between, in float64 so that equality is sharp."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.last = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(torch.tanh(self.first(x)))))))


def data(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator, dtype=torch.float64)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 0.5).square().mean()


def attach(model: nn.Module, **options: Any) -> tuple[IVON, NoiseController]:
    optimizer = IVON(model.parameters(), **{**OPTIONS, **options})
    return optimizer, NoiseController(model, optimizer, seed=7)
