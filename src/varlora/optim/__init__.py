"""Optimizers that keep a Gaussian posterior over the parameters they train."""

from varlora.optim.ivon import IVON

__all__ = ["IVON"]
