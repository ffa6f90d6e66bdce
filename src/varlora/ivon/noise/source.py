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

    def draw(self, likes: Mapping[str, Tensor], *, step: int, draw: int, rank: int) -> dict[str, Tensor]:
        """Returns standard-normal tensors, by name, in their shapes, dtypes and devices; who asks may change them.

        Args:
            likes: by name, which is the same on every rank and in every run, what gives shape, dtype and device.
            step: index of the optimizer step, from 0.
            draw: index of the draw within the step, from 0.
            rank: the data-parallel rank.
        """


@dataclass
class CounterNoise:
    """Noise that depends on nothing but (seed, step, draw, rank, names).

    The tensors of a device and dtype are cut, in the order of their names, out of one flat draw.

    Args:
        seed: any integer; runs with the same seed draw the same noise.

    Example:
        >>> import torch
        >>> source, likes = CounterNoise(seed=0), {"w": torch.zeros(2)}
        >>> first = source.draw(likes, step=3, draw=0, rank=0)["w"]
        >>> torch.equal(first, CounterNoise(seed=0).draw(likes, step=3, draw=0, rank=0)["w"])
        True
        >>> torch.equal(first, source.draw(likes, step=3, draw=0, rank=1)["w"])
        False
    """

    seed: int = 0
    _generators: dict[torch.device, torch.Generator] = field(default_factory=dict, init=False, repr=False)

    def draw(self, likes: Mapping[str, Tensor], *, step: int, draw: int, rank: int) -> dict[str, Tensor]:
        """See `NoiseSource.draw`."""
        alike: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name in sorted(likes):
            alike.setdefault((likes[name].device, likes[name].dtype), []).append(name)
        noise: dict[str, Tensor] = {}
        for (device, dtype), names in alike.items():
            key = repr((self.seed, step, draw, rank, *names)).encode()
            seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
            if device not in self._generators:
                self._generators[device] = torch.Generator(device)
            generator = self._generators[device].manual_seed(seed)
            sizes = [likes[name].numel() for name in names]
            flat = torch.randn(sum(sizes), generator=generator, dtype=dtype, device=device)
            parts = zip(names, torch.split(flat, sizes), strict=True)
            noise.update((name, part.view(likes[name].shape)) for name, part in parts)
        return noise


@dataclass
class ReplayedNoise:
    """Replays given noise, one tensor per draw and name: for tests and for comparing implementations.

    Args:
        draws: per name, the standard-normal tensors in the order in which they are asked for; who asks again for the
            draw that came last gets it again.

    Example:
        >>> import torch
        >>> source = ReplayedNoise({"w": [torch.ones(2), torch.zeros(2)]})
        >>> source.draw({"w": torch.empty(2)}, step=0, draw=0, rank=0)
        {'w': tensor([1., 1.])}
    """

    draws: Mapping[str, Sequence[Tensor]]
    _asked: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict, init=False, repr=False)

    def draw(self, likes: Mapping[str, Tensor], *, step: int, draw: int, rank: int) -> dict[str, Tensor]:
        """See `NoiseSource.draw`; raises IndexError after the last given draw."""
        for name in likes:
            asked = self._asked.setdefault(name, [])
            if asked[-1:] != [(step, draw, rank)]:
                asked.append((step, draw, rank))
        return {
            name: self.draws[name][len(self._asked[name]) - 1].to(like, copy=True).view_as(like)
            for name, like in likes.items()
        }
