"""Where the noise of a training step comes from: standard-normal numbers, keyed by what they are for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Where standard-normal noise comes from."""

    def draw(self, name: str, like: Tensor, *, step: int, draw: int, rank: int) -> Tensor:
        """Returns a standard-normal tensor of `like`'s shape, dtype and device.

        Args:
            name: the tensor's name, the same on every rank and in every run.
            like: gives shape, dtype and device.
            step: index of the optimizer step, from 0.
            draw: index of the draw within the step, from 0.
            rank: the data-parallel rank.
        """


@dataclass
class CounterNoise:
    """Noise that depends on nothing but (seed, step, draw, rank, name).

    Args:
        seed: any integer; runs with the same seed draw the same noise.

    Example:
        >>> import torch
        >>> source, like = CounterNoise(seed=0), torch.zeros(2)
        >>> first = source.draw("w", like, step=3, draw=0, rank=0)
        >>> torch.equal(first, CounterNoise(seed=0).draw("w", like, step=3, draw=0, rank=0))
        True
        >>> torch.equal(first, source.draw("w", like, step=3, draw=0, rank=1))
        False
    """

    seed: int = 0
    _generators: dict[torch.device, torch.Generator] = field(default_factory=dict, init=False, repr=False)

    def draw(self, name: str, like: Tensor, *, step: int, draw: int, rank: int) -> Tensor:
        """See `NoiseSource.draw`."""
        key = repr((self.seed, step, draw, rank, name)).encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
        if like.device not in self._generators:
            self._generators[like.device] = torch.Generator(like.device)
        generator = self._generators[like.device].manual_seed(seed)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


@dataclass
class ReplayedNoise:
    """Replays given noise, one tensor per call and name: for tests and for comparing implementations.

    Args:
        draws: per name, the standard-normal tensors in the order in which they are asked for.

    Example:
        >>> import torch
        >>> source = ReplayedNoise({"w": [torch.ones(2), torch.zeros(2)]})
        >>> source.draw("w", torch.empty(2), step=0, draw=0, rank=0)
        tensor([1., 1.])
    """

    draws: Mapping[str, Sequence[Tensor]]
    _calls: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def draw(self, name: str, like: Tensor, *, step: int, draw: int, rank: int) -> Tensor:
        """See `NoiseSource.draw`; raises IndexError after the last given draw."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        return self.draws[name][call].to(like).view_as(like)
