"""How wide the noise of each tensor is beside its weights, by the tensors' roles: rms(σ) / rms(m)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from varlora.posterior import DropoutMasks, Mixture, PointMass, Posterior

GROUPS = {
    "lora_A": "LoRA A",
    "lora_embedding_A": "LoRA A",
    "lora_B": "LoRA B",
    "lora_embedding_B": "LoRA B",
    "lora_magnitude_vector": "DoRA magnitudes",
}
"""Roles of an adapter's tensors, by what stands in their keys."""


@dataclass(frozen=True, kw_only=True)
class TensorScale:
    """How wide the noise of one tensor is, beside its weights.

    Attributes:
        key: the tensor's checkpoint key.
        noise: root mean square of the standard deviations.
        weights: root mean square of the means.
        entries: how many.
    """

    key: str
    noise: float
    weights: float
    entries: int

    @property
    def ratio(self) -> float:
        """Noise over weights; infinite for noise on weights that are all 0."""
        return self.noise / self.weights if self.weights > 0 else math.inf


@dataclass(frozen=True, kw_only=True)
class ScaleGroup:
    """Tensors of one role.

    Attributes:
        name: "LoRA A", "LoRA B", "head" (`modules_to_save`), "other", or "weights" of a plain module.
        tensors: in rising order of their ratios.
    """

    name: str
    tensors: tuple[TensorScale, ...]

    @property
    def ratio(self) -> float:
        """Noise over weights of all entries together."""
        noise = sum(t.entries * t.noise**2 for t in self.tensors)
        weights = sum(t.entries * t.weights**2 for t in self.tensors)
        return math.sqrt(noise / weights) if weights > 0 else math.inf

    @property
    def median(self) -> TensorScale:
        """The tensor in the middle (of two, the one with the smaller ratio)."""
        return self.tensors[(len(self.tensors) - 1) // 2]

    @property
    def largest(self) -> TensorScale:
        """The tensor with the widest noise."""
        return self.tensors[-1]


def scales_of(q: Posterior) -> tuple[tuple[ScaleGroup, ...], int]:
    """The tensors with noise by role, and how many have none.

    Of a mixture it is the noise within its components: what lies between those is no noise around one set of weights.

    Args:
        q: the posterior.

    Returns:
        The groups, LoRA's first, and the number of tensors that are known exactly; nothing and 0 where the posterior
        has no noise on weights at all.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> precision = {"a.lora_A.weight": torch.full((2,), 4.0), "a.lora_B.weight": torch.full((2,), torch.inf)}
        >>> q = DiagonalGaussian(mean={key: torch.full((2,), 2.0) for key in precision}, precision=precision)
        >>> groups, exact = scales_of(q)
        >>> [(group.name, group.ratio) for group in groups], exact
        ([('LoRA A', 0.25)], 1)
    """
    components: Sequence[Posterior] = q.components if isinstance(q, Mixture) else [q]
    if isinstance(q, DropoutMasks) or all(isinstance(c, PointMass) for c in components):
        return (), 0
    variances = [c.variance for c in components]
    groups: dict[str, list[TensorScale]] = {}
    exact = 0
    for key, point in q.point.items():
        noise = _root([variance[key].double() for variance in variances])
        if noise == 0:
            exact += 1
            continue
        role = _role(key, q.meta.adapter_config)
        weights = _root([c.mean[key].double().square() for c in components])
        scale = TensorScale(key=key, noise=noise, weights=weights, entries=point.numel())
        groups.setdefault(role, []).append(scale)
    order = [*GROUPS.values(), "head", "other", "weights"]
    return tuple(
        ScaleGroup(name=name, tensors=tuple(sorted(groups[name], key=lambda t: (t.ratio, t.key))))
        for name in sorted(groups, key=order.index)
    ), exact


def _role(key: str, adapter_config: Mapping[str, Any] | None) -> str:
    if adapter_config is None:
        return next((GROUPS[part] for part in GROUPS if part in key), "weights")
    saved = set(adapter_config.get("modules_to_save") or ())
    return next((GROUPS[part] for part in GROUPS if part in key), "head" if saved & set(key.split(".")) else "other")


def _root(squares: list[Tensor]) -> float:
    return math.sqrt(sum(float(square.mean()) for square in squares) / len(squares))
