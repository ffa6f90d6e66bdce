"""All mass at one set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from varlora.posterior.kinds import PointMassError, check_mean, sorted_tensors, with_zeros
from varlora.posterior.meta import PosteriorMeta


@dataclass(frozen=True, kw_only=True, eq=False)
class PointMass:
    """All mass at one set of weights: the "posterior" of a deterministic method.

    Tensors are held, not copied.

    Args:
        mean: the weights by checkpoint key; floating point and finite.
        meta: see `PosteriorMeta`.

    Raises:
        ValueError: there is no tensor, or one is not floating point or not finite; the message names it.

    Example:
        >>> q = PointMass(mean={"w": torch.ones(2)})
        >>> q.variance["w"]
        tensor([0., 0.])
    """

    kind: ClassVar[str] = "point_mass"
    symmetric: ClassVar[bool] = True
    mean: Mapping[str, Tensor]
    meta: PosteriorMeta = field(default_factory=PosteriorMeta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", sorted_tensors(self.mean))
        check_mean(self.mean)

    @property
    def variance(self) -> dict[str, Tensor]:
        """Zeros, by checkpoint key."""
        return {key: torch.zeros_like(m) for key, m in self.mean.items()}

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The mean; nothing is drawn from the generator."""
        return dict(self.mean)

    def zeroed(self, masks: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The weights with the masked ones at 0."""
        return type(self)(mean=with_zeros(self.mean, masks), meta=meta)

    def scaled(self, temperature: float, meta: PosteriorMeta) -> Self:
        """Not defined.

        Raises:
            PointMassError: always.
        """
        raise PointMassError("a point mass has no variance to temper; it stays what it is.")

    def tensors(self) -> dict[str, Tensor]:
        """None: the point says everything."""
        return {}

    @classmethod
    def from_tensors(cls, point: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The point as a point mass."""
        if tensors:
            raise ValueError(f"a point mass has no tensors but its mean, got {', '.join(sorted(tensors))}.")
        return cls(mean=point, meta=meta)
