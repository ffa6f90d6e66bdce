"""Optimizers that keep a Gaussian posterior over the parameters they train."""

from varlora.optim.auto import set_prior_width
from varlora.optim.ivon import IVON

__all__ = ["IVON", "set_prior_width"]
