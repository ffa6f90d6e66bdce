"""A Gaussian optimizer that is not IVON, and has nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Newton(torch.optim.Optimizer):
    """Plain variational Newton steps: s ← (1 − ρ) s + ρ (N f + δ), m ← m − lr (N g + δ m) / s, precision s."""

    noise: Any = None
    skipped_steps = 0

    def __init__(
        self, params: Any, lr: float, num_examples: int, prior_precision: float = 25.0, rate: float = 0.1
    ) -> None:
        options = {"lr": lr, "num_examples": num_examples, "prior_precision": prior_precision, "rate": rate}
        super().__init__(params, {**options, "step_index": 0})

    @property
    def step_index(self) -> int:
        return int(self.param_groups[0]["step_index"])

    def mean(self, p: Tensor) -> Tensor:
        return p.detach()

    def precision(self, p: Tensor) -> Tensor:
        start = self.ess_of(p) + self.prior_precision(p)
        return self.state[p].setdefault("precision", torch.full_like(p, start))  # type: ignore[no-any-return]

    def noise_scale(self, p: Tensor) -> Tensor:
        return self.precision(p).rsqrt()

    def prior_precision(self, p: Tensor) -> float:
        return float(self.param_groups[0]["prior_precision"])

    def prior_mean(self, p: Tensor) -> Tensor | None:
        return None

    def ess_of(self, p: Tensor) -> float:
        return float(self.param_groups[0]["num_examples"])

    def diagnostics(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"steps": self.step_index}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        for p, product in self.noise.collect().items():
            n, prior, precision = self.ess_of(p), self.prior_precision(p), self.precision(p)
            precision.lerp_(n * (product * precision).clamp(min=0) + prior, group["rate"])  # Price
            p.sub_(group["lr"] * (n * p.grad + prior * p) / precision)
        group["step_index"] += 1
        self.noise.after_step()
