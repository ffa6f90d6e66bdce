"""Variational training with IVON: the optimizer and its priors, the noise, what steers λ, recipes and the trainer.

optimizer, ivon_state, priors, auto     IVON's step, its state, its priors, and what it sets by itself
reference                               the equations, slow and plain
noise                                   sampled weights in the forward pass, noise times gradient in the backward pass
ess_control, held_out, steering         λ, moved by rows that are held out
config, trainer, variational_callback   recipes, and IVON in transformers' Trainer or any other
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from varlora.registry.lazy import lazily

if TYPE_CHECKING:
    from varlora.ivon.auto import set_prior_width
    from varlora.ivon.optimizer import IVON
    from varlora.posterior.gaussian_optimizer import GaussianOptimizer

__all__ = ["IVON", "GaussianOptimizer", "set_prior_width"]

_HOMES = {"IVON": "ivon.optimizer", "GaussianOptimizer": "posterior.gaussian_optimizer", "set_prior_width": "ivon.auto"}
__getattr__ = lazily("varlora.ivon", {name: f"varlora.{home}" for name, home in _HOMES.items()})
