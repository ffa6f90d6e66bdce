"""Weights that are known, of a model whose adapter drops inputs at random when it predicts: MC dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from varlora.posterior.kinds import NotAWeightSampleError, check_mean, sorted_tensors, with_zeros
from varlora.posterior.meta import PosteriorMeta

_RATE = "rate"


@dataclass(frozen=True, kw_only=True, eq=False)
class DropoutMasks:
    """Dropout masks on the adapter's inputs around one set of weights; not a distribution over weights.

    A mask is drawn anew for every example and every token, so no pass of MC dropout is made by one set of weights:
    there is nothing to sample, to temper, or to have a variance over. `varlora.predict` makes S passes at `point` with
    the adapter's dropout on; pruning by magnitude is defined, since it needs the weights only.

    Args:
        mean: the weights by checkpoint key; floating point and finite.
        rate: the probability with which an input is dropped, between 0 and 1, both excluded.
        meta: see `PosteriorMeta`.

    Raises:
        ValueError: a tensor does not do (the message names it), or the rate is out of its range.

    Example:
        >>> q = DropoutMasks(mean={"w": torch.ones(2)}, rate=0.1)
        >>> q.point["w"]
        tensor([1., 1.])
    """

    kind: ClassVar[str] = "dropout_masks"
    symmetric: ClassVar[bool] = False
    mean: Mapping[str, Tensor]
    rate: float
    meta: PosteriorMeta = field(default_factory=PosteriorMeta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", sorted_tensors(self.mean))
        check_mean(self.mean)
        if not 0 < self.rate < 1:
            raise ValueError(
                f"the dropout rate is {self.rate!r}; it must lie between 0 and 1. At 0 every pass is the same: use a "
                "PointMass."
            )

    @property
    def variance(self) -> dict[str, Tensor]:
        """Not defined. Zeros would let a signal-to-noise ratio or a report pass for a measurement.

        Raises:
            NotAWeightSampleError: always.
        """
        raise _no_weights("no variance of the weights", "Prune by magnitude, or train with another method.")

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The weights: every input kept, as dropout is off in eval mode."""
        return self.mean

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Not defined.

        Raises:
            NotAWeightSampleError: always.
        """
        raise _no_weights(
            "no draw of the weights",
            "Predict with varlora.predict(model, q, ...), which leaves the adapter's dropout on; to export, merge or "
            "generate, use q.point.",
        )

    def zeroed(self, masks: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The weights with the masked ones at 0."""
        return type(self)(mean=with_zeros(self.mean, masks), rate=self.rate, meta=meta)

    def scaled(self, temperature: float, meta: PosteriorMeta) -> Self:
        """Not defined.

        Raises:
            NotAWeightSampleError: always.
        """
        raise _no_weights("no covariance to temper", "Train with another lora_dropout to change its spread.")

    def tensors(self) -> dict[str, Tensor]:
        """The rate, a float64 scalar."""
        return {_RATE: torch.tensor(self.rate, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, point: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The weights and the rate."""
        if tensors.keys() != {_RATE} or tensors[_RATE].numel() != 1:
            raise ValueError(f"MC dropout keeps one number, {_RATE!r}, beside its weights; got {sorted(tensors)}.")
        return cls(mean=point, rate=tensors[_RATE].item(), meta=meta)


def _no_weights(what: str, instead: str) -> NotAWeightSampleError:
    return NotAWeightSampleError(
        f"MC dropout has {what}: its mask differs from example to example, so no pass is made by one set of weights. "
        f"{instead}"
    )
