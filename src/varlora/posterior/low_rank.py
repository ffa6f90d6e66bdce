"""A Gaussian whose covariance is a diagonal plus a few directions, as SWAG and ScalaBL give it.

    w = m + sqrt(d) ε + Σ_k z_k D_k,   ε ~ N(0, I), z ~ N(0, I_K),   covariance = diag d + Dᵀ D

With `shared`, one z moves all tensors together (SWAG: a snapshot is one set of weights), so entries of different
tensors are correlated; without, every tensor has a z of its own (ScalaBL).

Source: Maddox et al. 2019, arXiv 1902.02476 (shared); Samplawski et al. 2025, arXiv 2506.21408 (one per tensor).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from varlora.posterior.kinds import (
    NotLinearisableError,
    check_mean,
    check_scaled,
    sorted_tensors,
    standard_normal,
    with_zeros,
)
from varlora.posterior.meta import PosteriorMeta


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankGaussian:
    """q = N(m, diag d + Dᵀ D).

    Tensors are held, not copied.

    Args:
        mean: m by checkpoint key; floating point and finite.
        diagonal: d >= 0, a variance, same keys and shapes; float32 or float64.
        deviations: D by the same keys, each (K, *shape): row k is what z_k = 1 adds to the tensor; float32 or
            float64. K may be 0, and may differ between tensors unless `shared`.
        shared: whether one z moves all tensors together, or each tensor has its own.
        meta: see `PosteriorMeta`.

    An entry whose diagonal and deviations are all 0 is known exactly.

    Raises:
        ValueError: keys, shapes, dtypes or values do not fit; the message names the tensor.

    Example:
        >>> q = LowRankGaussian(
        ...     mean={"w": torch.zeros(2)},
        ...     diagonal={"w": torch.tensor([1.0, 0.0])},
        ...     deviations={"w": torch.tensor([[3.0, 4.0]])},
        ...     shared=True,
        ... )
        >>> q.variance["w"]
        tensor([10., 16.])
    """

    kind: ClassVar[str] = "low_rank_gaussian"
    symmetric: ClassVar[bool] = True
    mean: Mapping[str, Tensor]
    diagonal: Mapping[str, Tensor]
    deviations: Mapping[str, Tensor]
    shared: bool
    meta: PosteriorMeta = field(default_factory=PosteriorMeta)

    def __post_init__(self) -> None:
        for name in ("mean", "diagonal", "deviations"):
            object.__setattr__(self, name, sorted_tensors(getattr(self, name)))
        check_mean(self.mean)
        for name, tensors in (("diagonal", self.diagonal), ("deviations", self.deviations)):
            if differing := sorted(self.mean.keys() ^ tensors.keys()):
                raise ValueError(f"mean and {name} must have the same keys; only one of them has {differing[:4]}.")
            for key, tensor in tensors.items():
                _check(name, key, tensor, self.mean[key].shape)
        ranks = {key: len(rows) for key, rows in self.deviations.items()}
        if self.shared and len(set(ranks.values())) > 1:
            raise ValueError(f"one z moves all tensors (shared), so their deviations need one K, not {ranks}.")

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The mean."""
        return self.mean

    @property
    def variance(self) -> dict[str, Tensor]:
        """Marginal variances d + Σ_k D_k², by checkpoint key."""
        return {key: d + self.deviations[key].square().sum(0) for key, d in self.diagonal.items()}

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One draw of all tensors: in float32, or float64 where the mean is.

        The noise is drawn on the generator's device: a shared z first, then for every tensor in sorted order of
        the keys ε in the tensor's shape and, unless shared, its own z; exactly known entries included. So equal
        seeds give equal noise before and after pruning.

        Args:
            generator: the only source of randomness.

        Returns:
            Tensors by checkpoint key, in sorted order, on the mean's device.
        """
        dtype = torch.float64 if any(m.dtype == torch.float64 for m in self.mean.values()) else torch.float32

        def directions(key: str) -> Tensor:
            """z ~ N(0, I_K)."""
            return torch.randn(len(self.deviations[key]), generator=generator, device=generator.device, dtype=dtype)

        shared = directions(next(iter(self.mean))) if self.shared else None
        draw = {}
        for key, mean in self.mean.items():
            eps = standard_normal(mean, generator)
            z = (shared if shared is not None else directions(key)).to(eps)
            along = torch.tensordot(z, self.deviations[key].to(eps), dims=1)
            draw[key] = torch.addcmul(mean.to(eps.dtype), self.diagonal[key].to(eps).sqrt(), eps).add_(along)
        return draw

    def quadratic_form(self, key: str, vectors: Tensor) -> Tensor:
        """V (diag d + Dᵀ D) Vᵀ for one tensor; see `LinearisableGaussian`.

        Raises:
            NotLinearisableError: one z moves all tensors (shared), so the covariance is no sum over tensors.
            ValueError: the vectors do not fit the tensor.
        """
        if self.shared:
            raise NotLinearisableError(
                "this posterior's tensors are correlated with each other (one z moves them all), so its covariance is "
                "no sum over tensors, and linearised prediction cannot use it. Predict by samples."
            )
        shape = self.mean[key].shape
        if vectors.ndim < 2 or vectors.shape[2:] != shape:
            raise ValueError(f"vectors for {key} must be (B, C, {', '.join(map(str, shape))}): {tuple(vectors.shape)}.")
        flat = vectors.flatten(2)
        along = flat @ self.deviations[key].flatten(1).to(flat).T  # (B, C, K)
        return (flat * self.diagonal[key].flatten().to(flat)) @ flat.mT + along @ along.mT

    def zeroed(self, masks: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The masked entries are known to be 0: their diagonal and deviations are 0, too."""
        diagonal, deviations = with_zeros(self.diagonal, masks), with_zeros(self.deviations, masks)
        return dataclasses.replace(
            self, mean=with_zeros(self.mean, masks), diagonal=diagonal, deviations=deviations, meta=meta
        )

    def scaled(self, temperature: float, meta: PosteriorMeta) -> Self:
        """The diagonal times the temperature, the deviations times its root.

        Raises:
            ValueError: the temperature is not positive and finite, or a value leaves the range of its dtype.
        """
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}; it must be a positive, finite number.")
        diagonal = {key: d * temperature for key, d in self.diagonal.items()}
        deviations = {key: rows * math.sqrt(temperature) for key, rows in self.deviations.items()}
        for before, after in ((self.diagonal, diagonal), (self.deviations, deviations)):
            for key, tensor in after.items():
                check_scaled(key, before[key], tensor, temperature, "variances")
        return dataclasses.replace(self, diagonal=diagonal, deviations=deviations, meta=meta)

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds beside the mean: `diagonal.KEY`, and `deviations.KEY` or `shared_deviations.KEY`."""
        prefix = _PREFIXES[self.shared]
        return {
            **{f"diagonal.{key}": d for key, d in self.diagonal.items()},
            **{f"{prefix}{key}": rows for key, rows in self.deviations.items()},
        }

    @classmethod
    def from_tensors(cls, point: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The posterior whose `tensors` are given.

        Raises:
            ValueError: a tensor is strange or missing, or does not fit; the message names it.
        """
        parts: dict[str, dict[str, Tensor]] = {"diagonal.": {}, _PREFIXES[False]: {}, _PREFIXES[True]: {}}
        for name, tensor in tensors.items():
            prefix, _, key = name.partition(".")
            if f"{prefix}." not in parts:
                raise ValueError(f"a low-rank Gaussian has no tensor {name}; its names begin with {sorted(parts)}.")
            parts[f"{prefix}."][key] = tensor
        own, shared = parts[_PREFIXES[False]], parts[_PREFIXES[True]]
        if own and shared:
            raise ValueError("deviations are given both shared and for each tensor alone; a posterior has one of them.")
        return cls(mean=point, diagonal=parts["diagonal."], deviations=shared or own, shared=bool(shared), meta=meta)


_PREFIXES: Mapping[bool, str] = {False: "deviations.", True: "shared_deviations."}


def _check(name: str, key: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} of {key} has dtype {tensor.dtype}; it must be float32 or float64.")
    expected, actual = tuple(shape), tuple(tensor.shape if name == "diagonal" else tensor.shape[1:])
    if actual != expected or (name == "deviations" and tensor.ndim != len(shape) + 1):
        wanted = expected if name == "diagonal" else ("K", *expected)
        raise ValueError(f"{name} of {key} has shape {tuple(tensor.shape)}; its mean asks for {wanted}.")
    bad = ~torch.isfinite(tensor) if name == "deviations" else ~(torch.isfinite(tensor) & (tensor >= 0))
    if count := int(bad.sum()):
        allowed = "finite" if name == "deviations" else "finite and at least 0"
        raise ValueError(f"{name} of {key} has {count} value(s) of {tensor.numel()} that are not {allowed}.")
