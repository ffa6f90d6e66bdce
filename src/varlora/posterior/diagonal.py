"""The Gaussian with independent entries: what IVON trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from varlora.posterior.kinds import check_mean, check_scaled, sorted_tensors, standard_normal, with_zeros
from varlora.posterior.meta import PosteriorMeta

_PRIOR_MEAN = "prior_mean/"


@dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalGaussian:
    """q = N(m, diag v), v = 1 / precision, with independent entries.

    Tensors are held, not copied.

    Args:
        mean: m by checkpoint key; floating point and finite.
        precision: 1 / v, same keys and shapes; float32 or float64, > 0. Infinity marks an entry that is known
            exactly: one pruned to zero, or all entries of a tensor that did not train.
        prior_mean: m0 of the prior N(m0, 1/(λδ)) whose λδ is `meta.prior_precision`, by checkpoint key, same shapes;
            0 where there is none.
        meta: see `PosteriorMeta`.

    Raises:
        ValueError: keys, shapes, dtypes or values do not fit; the message names the tensor.

    Example:
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(2)}, precision={"w": torch.tensor([4.0, torch.inf])})
        >>> q.variance["w"]
        tensor([0.2500, 0.0000])
        >>> q.sample(torch.Generator().manual_seed(0))["w"].shape
        torch.Size([2])
    """

    kind: ClassVar[str] = "diagonal_gaussian"
    symmetric: ClassVar[bool] = True
    mean: Mapping[str, Tensor]
    precision: Mapping[str, Tensor]
    prior_mean: Mapping[str, Tensor] = field(default_factory=dict)
    meta: PosteriorMeta = field(default_factory=PosteriorMeta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", sorted_tensors(self.mean))
        object.__setattr__(self, "precision", sorted_tensors(self.precision))
        object.__setattr__(self, "prior_mean", sorted_tensors(self.prior_mean))
        check_mean(self.mean)
        _check_precision(self.mean, self.precision)
        _check_prior_mean(self.mean, self.prior_mean)

    @property
    def variance(self) -> dict[str, Tensor]:
        """v = 1 / precision, by checkpoint key."""
        return {key: precision.reciprocal() for key, precision in self.precision.items()}

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One draw m + sqrt(v) ε, ε ~ N(0, I): in float32, or float64 where the mean is.

        ε is drawn on the generator's device, for every tensor in sorted order of the keys, exactly known
        entries included: so equal seeds give equal ε before and after pruning.

        Args:
            generator: the only source of randomness.

        Returns:
            Tensors by checkpoint key, in sorted order, on the mean's device.
        """
        draw = {}
        for key, mean in self.mean.items():
            eps = standard_normal(mean, generator)
            std = self.precision[key].to(mean.device, eps.dtype).rsqrt()
            draw[key] = torch.addcmul(mean.to(eps.dtype), std, eps)
        return draw

    def quadratic_form(self, key: str, vectors: Tensor) -> Tensor:
        """V diag(v) Vᵀ for one tensor; see `LinearisableGaussian`."""
        flat = vectors.flatten(2)
        variance = self.precision[key].reciprocal().flatten().to(flat)
        return (flat * variance) @ flat.mT

    def zeroed(self, masks: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The masked entries are known to be 0: their precision is infinite."""
        precision = with_zeros(self.precision, masks, math.inf)
        return dataclasses.replace(self, mean=with_zeros(self.mean, masks), precision=precision, meta=meta)

    def scaled(self, temperature: float, meta: PosteriorMeta) -> Self:
        """Every precision divided by the temperature.

        Raises:
            ValueError: a precision leaves the range of its dtype.
        """
        precision = {key: p / temperature for key, p in self.precision.items()}
        for key, p in precision.items():
            check_scaled(key, self.precision[key], p, temperature, "precisions")
        return dataclasses.replace(self, precision=precision, meta=meta)

    def tensors(self) -> dict[str, Tensor]:
        """The precisions, by checkpoint key, and `prior_mean/KEY`."""
        return {**self.precision, **{_PRIOR_MEAN + key: m for key, m in self.prior_mean.items()}}

    @classmethod
    def from_tensors(cls, point: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """A Gaussian with the point as its mean."""
        prior_mean = {name.removeprefix(_PRIOR_MEAN): t for name, t in tensors.items() if name.startswith(_PRIOR_MEAN)}
        precision = {name: t for name, t in tensors.items() if not name.startswith(_PRIOR_MEAN)}
        return cls(mean=point, precision=precision, prior_mean=prior_mean, meta=meta)


def _check_precision(mean: Mapping[str, Tensor], precisions: Mapping[str, Tensor]) -> None:
    if differing := sorted(mean.keys() ^ precisions.keys()):
        raise ValueError(f"mean and precision must have the same keys; only one of them has {differing}.")
    for key, precision in precisions.items():
        if precision.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"precision of {key} has dtype {precision.dtype}; it must be float32 or float64.")
        if precision.shape != mean[key].shape:
            raise ValueError(
                f"precision of {key} has shape {tuple(precision.shape)}, its mean {tuple(mean[key].shape)}."
            )
        if bad := int((~(precision > 0)).sum()):
            raise ValueError(f"precision of {key} has {bad} value(s) of {precision.numel()} that are NaN or not > 0.")
        exact = torch.isinf(precision)
        if not bool(exact.all()) and (bad := int((exact & (mean[key] != 0)).sum())):
            raise ValueError(
                f"precision of {key} has {bad} infinite value(s) where the mean is not 0; infinity marks a pruned "
                "entry, or all entries of a tensor that did not train."
            )


def _check_prior_mean(mean: Mapping[str, Tensor], prior_means: Mapping[str, Tensor]) -> None:
    for key, m in prior_means.items():
        if key not in mean:
            raise ValueError(f"the prior's mean has {key}, which the posterior lacks.")
        if m.shape != mean[key].shape or not m.is_floating_point():
            raise ValueError(
                f"the prior's mean of {key} is {m.dtype} of shape {tuple(m.shape)}; it must be floating point of shape "
                f"{tuple(mean[key].shape)}."
            )
        if bad := int((~torch.isfinite(m)).sum()):
            raise ValueError(f"the prior's mean of {key} has {bad} NaN or infinite value(s) of {m.numel()}.")
