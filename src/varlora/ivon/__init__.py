"""Variational training with IVON: the optimizer and its priors, the noise, what steers λ, recipes and the trainer.

optimizer, ivon_state, priors, auto     IVON's step, its state, its priors, and what it sets by itself
reference                               the equations, slow and plain
noise                                   sampled weights in the forward pass, noise times gradient in the backward pass
ess_control, held_out, steering         λ, moved by rows that are held out
config, trainer, variational_callback   recipes, and IVON in transformers' Trainer or any other
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
