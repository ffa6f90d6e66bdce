"""Optimizers that keep a Gaussian posterior over the parameters they train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varlora.lazy import lazily

if TYPE_CHECKING:
    from varlora.optim.auto import set_prior_width
    from varlora.optim.gaussian_optimizer import GaussianOptimizer
    from varlora.optim.ivon import IVON

__all__ = ["IVON", "GaussianOptimizer", "set_prior_width"]

_HOMES = {"IVON": "ivon", "GaussianOptimizer": "gaussian_optimizer", "set_prior_width": "auto"}
__getattr__ = lazily("varlora.optim", {name: f"varlora.optim.{home}" for name, home in _HOMES.items()})
