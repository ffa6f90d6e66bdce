"""Sampled weights in the forward pass, noise · gradient in the backward pass.

source ──► draw_cycle ──► controller ◄── sampled ◄── places
                            ▲── losses
"""

from varlora.ivon.noise.controller import NoiseController, NoiseWarning
from varlora.ivon.noise.draw_cycle import Draw, DrawCycle
from varlora.ivon.noise.source import CounterNoise, NoiseSource, ReplayedNoise

__all__ = ["CounterNoise", "Draw", "DrawCycle", "NoiseController", "NoiseSource", "NoiseWarning", "ReplayedNoise"]
