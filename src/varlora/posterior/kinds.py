"""What every kind of posterior can do, and the errors of what a kind cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Protocol, Self, runtime_checkable  # theirs evaluates no property of an instance

from varlora.posterior.meta import PosteriorMeta


class PointMassError(ValueError):
    """The operation needs a variance, and the posterior is (partly) a point mass."""


class NotAWeightSampleError(ValueError):
    """The operation needs draws of weights, and what the method draws is something else."""


@runtime_checkable
class Posterior(Protocol):
    """A distribution over tensors; all mappings have the same keys, in sorted order.

    Attributes:
        kind: its name in files.
        symmetric: whether it is symmetric about its mean, so that draws may be mirrored.
    """

    kind: ClassVar[str]
    symmetric: ClassVar[bool]

    @property
    def mean(self) -> Mapping[str, Tensor]:
        """Means m, by checkpoint key."""

    @property
    def variance(self) -> Mapping[str, Tensor]:
        """Marginal variances v, by checkpoint key; 0 where an entry is known exactly."""

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The one set of weights to predict with and to keep as the adapter: a Gaussian's mean."""

    @property
    def meta(self) -> PosteriorMeta:
        """What the numbers mean and where they come from."""

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One coherent draw of all tensors.

        Raises:
            NotAWeightSampleError: what the method draws is not a set of weights.
        """

    def zeroed(self, masks: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The same with the entries where a mask is True known to be exactly 0, and another meta."""

    def scaled(self, temperature: float, meta: PosteriorMeta) -> Self:
        """The same with every covariance multiplied by a temperature > 0, and another meta.

        Raises:
            PointMassError: there is no variance.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What must be kept beside `point` to make the posterior again; names are the kind's own."""

    @classmethod
    def from_tensors(cls, point: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The inverse of `tensors`.

        Raises:
            ValueError: the tensors do not fit together.
        """


class NotLinearisableError(ValueError):
    """A posterior that cannot be pushed through a linear map: not one Gaussian of independent tensors."""


class LinearisableGaussian(Posterior, Protocol):
    """A Gaussian whose tensors are independent of each other, so that it can be pushed through a linear map.

    Whether a posterior is one is asked of `linearisable`, not of `isinstance`, which would evaluate its variance.
    """

    def quadratic_form(self, key: str, vectors: Tensor) -> Tensor:
        """V Σ Vᵀ for the covariance Σ of one tensor.

        Args:
            key: the tensor.
            vectors: (B, C, *shape): C vectors for each of B examples.

        Returns:
            (B, C, C), in the vectors' dtype.
        """


def sorted_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, detached, in sorted order of their keys."""
    return {key: tensors[key].detach() for key in sorted(tensors)}


def check_mean(mean: Mapping[str, Tensor]) -> None:
    """Checks that there are means, of floating point, and finite.

    Raises:
        ValueError: what does not hold, by tensor.
    """
    if not mean:
        raise ValueError("a posterior needs at least one tensor.")
    for key, m in mean.items():
        if not m.is_floating_point():
            raise ValueError(f"mean of {key} has dtype {m.dtype}; it must be floating point.")
        if bad := int((~torch.isfinite(m)).sum()):
            raise ValueError(f"mean of {key} has {bad} NaN or infinite value(s) of {m.numel()}.")


def with_zeros(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], value: float = 0.0) -> dict[str, Tensor]:
    """The tensors with the masked entries set to 0, or another value; tensors without a mask as they are."""
    return {key: t.masked_fill(masks[key].to(t.device), value) if key in masks else t for key, t in tensors.items()}


def check_scaled(key: str, before: Tensor, after: Tensor, temperature: float, what: str) -> None:
    """Refuses numbers that a temperature has taken to 0 or to infinity.

    Raises:
        ValueError: there is one; the message names the tensor.
    """
    if bool(((torch.isinf(after) & torch.isfinite(before)) | ((after == 0) & (before != 0))).any()):
        raise ValueError(f"temperature {temperature!r} takes {what} of {key} out of the range of {after.dtype}.")


def draw_dtype(mean: Tensor) -> torch.dtype:
    """The dtype of draws: float32, or float64 where the mean is."""
    return torch.float64 if mean.dtype == torch.float64 else torch.float32


def standard_normal(mean: Tensor, generator: torch.Generator) -> Tensor:
    """ε ~ N(0, I) of a mean's shape, in the dtype of draws, drawn on the generator's device, on the mean's."""
    eps = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=draw_dtype(mean))
    return eps.to(mean.device)


def linearisable(q: Posterior) -> LinearisableGaussian:
    """The posterior, if it can be pushed through a linear map.

    Raises:
        NotLinearisableError: it has no quadratic form, or none of one tensor alone.
    """
    if hasattr(type(q), "quadratic_form") and not getattr(q, "shared", False):
        return q  # type: ignore[return-value]
    raise NotLinearisableError(
        f"a posterior of kind {q.kind!r} cannot be linearised{' (one z for all tensors)' * hasattr(q, 'shared')}: "
        "that needs one Gaussian with a variance, whose tensors are independent (methods laplace, ivon). Predict at "
        "its point or by samples."
    )
