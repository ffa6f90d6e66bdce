"""AdamW that keeps an exponential moving average of the weights as its state, which checkpoints hold.

    w̄ ← a w̄ + (1 − a) w,        a = min(decay, (1 + t) / (10 + t)) after step t,

so that the start is soon forgotten. Source: Polyak & Juditsky 1992; the warm-up is the one of TensorFlow's
ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from varlora.methods.snapshots import restore_exactly
from varlora.posterior.wrapped import unwrapped_as


class AveragedAdamW(torch.optim.AdamW):
    """PyTorch's AdamW with the average of its path.

    State per parameter that had a gradient: AdamW's, and `average`, float32 (float64 for float64 parameters).

    Args:
        params: parameters.
        ema_decay: the largest a, in [0, 1).

    All other arguments are AdamW's.

    Raises:
        ValueError: the decay is out of its range.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = AveragedAdamW([p], lr=1.0, ema_decay=0.9)
        >>> p.grad = torch.full((1,), -1.0)
        >>> optimizer.step()
        >>> round(p.item(), 3), round(optimizer.average(p).item(), 3)      # the average begins at the first step's end
        (1.0, 1.0)
    """

    def __init__(self, params: ParamsT, *, ema_decay: float, **options: Any) -> None:
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay!r}; it must be at least 0 and below 1.")
        super().__init__(params, **options)
        self.ema_decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """AdamW's step; then the average takes its step."""
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    continue
                weights = p.detach().to(torch.promote_types(p.dtype, torch.float32))
                if "average" not in state:
                    state["average"] = weights.clone()
                count = float(state["step"])
                state["average"].lerp_(weights, 1 - min(self.ema_decay, (1 + count) / (10 + count)))
        return loss

    def average(self, p: Tensor) -> Tensor:
        """The average of a parameter; the parameter itself before its first step."""
        average: Tensor = self.state[p]["average"] if self.state.get(p) else p.detach()
        return average

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state; averages stay in float32.

        Raises:
            ValueError: the state is a plain AdamW's.
        """
        if any("exp_avg" in state and "average" not in state for state in state_dict["state"].values()):
            raise ValueError(
                "the checkpoint is of an AdamW that kept no average. Resume with the method that wrote it, or start "
                "afresh."
            )
        super().load_state_dict(state_dict)
        restore_exactly(self, state_dict, "average")


def averaged_adamw(optimizer: Any) -> AveragedAdamW:
    """The optimizer inside accelerate's wrapper.

    Raises:
        TypeError: it keeps no average.
    """
    return unwrapped_as(optimizer, AveragedAdamW, "ema")
