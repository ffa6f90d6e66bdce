"""Steps that are left out because a number was not finite: how many are too many, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from varlora.posterior.sharded import local

MOST_SKIPPED = 0.5
"""Share of skipped steps beyond which a training is an error."""
STEPS_BEFORE_REFUSAL = 20
"""Before so many steps nothing is said of their share within a training."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry that this rank holds is finite, a boolean scalar, by norms.

    Example:
        >>> all_finite([torch.zeros(2), torch.tensor([1.0, float("nan")])])
        tensor(False)
    """
    held = [part for tensor in tensors if (part := local(tensor)).numel()]
    if not held:
        return torch.tensor(True)
    if all(part.device.type == "cpu" for part in held):  # where an overflow is looked at, and the largest entry is slow
        if bool(torch.stack(torch._foreach_norm(held)).isfinite().all()):
            return torch.tensor(True)
        return torch.stack([torch.isfinite(part).all() for part in held]).all()
    sizes = torch._foreach_norm(held, math.inf)
    return torch.stack([size.to(sizes[0].device) for size in sizes]).isfinite().all()


def mostly_skipped(skipped: int, steps: int) -> str:
    """What to say of a training that left out more than half of its steps."""
    return (
        f"{skipped} of {steps} steps skipped for numbers that are not finite. That is more than half, and the rest is "
        "no training. Look for the loss that is not finite (rows without a label, a learning rate that is too large, "
        "float16), and train again."
    )
