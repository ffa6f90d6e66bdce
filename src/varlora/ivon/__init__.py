"""Variational training with IVON: the optimizer and its priors, the noise, what steers λ, recipes and the trainer.

optimizer, ivon_state, priors, auto     IVON's step, its state, its priors, and what it sets by itself
reference                               the equations, slow and plain
noise                                   sampled weights in the forward pass, noise times gradient in the backward pass
ess_control, steering                   λ, and what moves it between the steps of a training
held_out, calibration_slope, measuring  rows that are held out, what they say, and when they are asked
withholding, trainer_held_out           which rows these are in a Trainer
config, trainer, variational_callback   recipes, and IVON in transformers' Trainer or any other
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
