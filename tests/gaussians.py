"""Gaussians written by their entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from varlora.posterior import DiagonalGaussian, PosteriorMeta


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(mean: dict[str, Any], variance: dict[str, Any], **meta: Any) -> DiagonalGaussian:
    return DiagonalGaussian(
        mean={key: f64(m) for key, m in mean.items()},
        precision={key: 1 / f64(v) for key, v in variance.items()},
        meta=PosteriorMeta(**meta),
    )


def one(mean: Sequence[float], variance: Sequence[float], **meta: Any) -> DiagonalGaussian:
    return gaussian({"w": mean}, {"w": variance}, **meta)


def close(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, f64(expected), rtol=1e-9, atol=0)
