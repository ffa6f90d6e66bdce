"""Sampled weights in the forward pass, noise · gradient in the backward pass.

source ──► controller ◄── sampled ◄── places
"""

from varlora.noise.controller import NoiseController, NoiseWarning
from varlora.noise.source import CounterNoise, NoiseSource, ReplayedNoise

__all__ = ["CounterNoise", "NoiseController", "NoiseSource", "NoiseWarning", "ReplayedNoise"]
