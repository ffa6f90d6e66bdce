"""Optimizers that keep a Gaussian posterior over the parameters they train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varlora.lazy import lazily

if TYPE_CHECKING:
    from varlora.optim.auto import set_prior_width
    from varlora.optim.ivon import IVON

__all__ = ["IVON", "set_prior_width"]

__getattr__ = lazily("varlora.optim", {"IVON": "varlora.optim.ivon", "set_prior_width": "varlora.optim.auto"})
