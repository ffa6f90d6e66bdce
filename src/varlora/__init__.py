"""Variational LoRA: fine-tune a language model and keep a posterior over the adapter's weights."""

from varlora.noise import NoiseController
from varlora.optim import IVON
from varlora.training import IVONConfig, VariationalCallback, VariationalTrainerMixin

__all__ = [
    "IVON",
    "IVONConfig",
    "NoiseController",
    "VariationalCallback",
    "VariationalTrainerMixin",
]
