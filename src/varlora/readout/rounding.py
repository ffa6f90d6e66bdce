"""How far apart two ways to compute the same thing may be, by the data type that they round to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

TOLERANCE: Mapping[torch.dtype, float] = {torch.float64: 1e-3, torch.float32: 1e-3}
"""Relative, by the frozen weights' data type."""
COARSE = 0.05
"""The same, of half precision, autocast and quantised weights, whose rounding depends on what is in the batch."""


def agree(model: nn.Module, one: Tensor, other: Tensor) -> bool:
    """Whether what a model gave in two ways is the same up to its rounding, relative to the largest entry or 1.

    Example:
        >>> agree(nn.Linear(1, 1), torch.tensor([100.0]), torch.tensor([100.05]))
        True
        >>> agree(nn.Linear(1, 1), torch.tensor([100.0]), torch.tensor([101.0]))
        False
    """
    parameters = list(model.parameters())
    dtypes = {p.dtype for p in parameters if not p.requires_grad} or {p.dtype for p in parameters}
    tolerance = max((TOLERANCE.get(dtype, COARSE) for dtype in dtypes), default=COARSE)
    if any(torch.is_autocast_enabled(p.device.type) for p in parameters[:1]):
        tolerance = COARSE
    scale = max(1.0, one.nan_to_num(0.0, 0.0, 0.0).abs().max().item())
    return one.shape == other.shape and torch.allclose(other, one, rtol=0.0, atol=tolerance * scale, equal_nan=True)
