"""The Gaussian of Laplace's method with Kronecker-factored curvature: each tensor has its own, independent of the rest.

For a tensor W (out × in; a bias is out × 1) the precision of its entries, row by row, is

    Λ = G ⊗ K + δ I,     G = U diag(λ) Uᵀ (out × out),     K = V diag(μ) Vᵀ (in × in)

with orthonormal columns in U (out × p) and V (in × q). Where p < out or q < in the factor has low rank, and the
directions outside the span of u_i ⊗ v_j have the prior's precision δ alone. With P = Uᵀ X V, any function φ of Λ acts
on a matrix X exactly by

    φ(Λ) X = U [ φ(λ_i μ_j + δ) ∘ P ] Vᵀ + φ(δ) (X − U P Vᵀ)

which gives draws (φ(x) = x^-½), variances and quadratic forms (φ(x) = 1/x) without a matrix of (out · in)².

Source: Ritter et al. 2018 (Kronecker-factored Laplace); Yang et al. 2023, arXiv 2308.13111 (low rank for LoRA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from varlora.posterior.kinds import check_mean, sorted_tensors, standard_normal, with_zeros
from varlora.posterior.meta import PosteriorMeta

_ORTHONORMAL_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerFactors:
    """G and K by their eigenpairs.

    Attributes:
        out_vectors: U (out, p), orthonormal columns.
        out_values: λ (p,), >= 0.
        in_vectors: V (in, q), orthonormal columns.
        in_values: μ (q,), >= 0.

    Example:
        >>> eye = torch.eye(2)
        >>> KroneckerFactors(out_vectors=eye, out_values=torch.tensor([1.0, 2.0]), in_vectors=torch.ones(1, 1),
        ...                  in_values=torch.tensor([3.0])).eigenvalues
        tensor([[3.],
                [6.]])
    """

    out_vectors: Tensor
    out_values: Tensor
    in_vectors: Tensor
    in_values: Tensor

    def __post_init__(self) -> None:
        for name, tensor in self.named().items():  # products round by memory layout, which files do not keep
            object.__setattr__(self, name, tensor.contiguous())

    @property
    def eigenvalues(self) -> Tensor:
        """λ_i μ_j (p, q), those of G ⊗ K that are kept; the others are 0."""
        return torch.outer(self.out_values, self.in_values)

    @property
    def complete(self) -> bool:
        """Whether the eigenvectors span everything."""
        squares = (v.shape[0] == v.shape[1] for v in (self.out_vectors, self.in_vectors))
        return all(squares)

    def to(self, like: Tensor) -> KroneckerFactors:
        """The same in another tensor's dtype and on its device."""
        return KroneckerFactors(**{name: t.to(like) for name, t in self.named().items()})

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """P = Uᵀ X V (..., p, q) of X (..., out, in), and X − U P Vᵀ, None where nothing is outside the span."""
        u, v = self.out_vectors, self.in_vectors
        p = u.mT @ x @ v
        return p, None if self.complete else x - u @ p @ v.mT

    def named(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerGaussian:
    """q = N(m, Λ⁻¹), Λ = G ⊗ K + δ I for each tensor.

    Tensors are held, not copied.

    Args:
        mean: m by checkpoint key; floating point and finite; one or two dimensions where there are factors.
        factors: G and K by checkpoint key; a tensor without factors is known exactly.
        prior_precision: δ > 0, one for each tensor with factors.
        pruned: boolean masks by checkpoint key; a True entry is known to be exactly 0. The others keep their
            joint distribution.
        meta: see `PosteriorMeta`.

    Raises:
        ValueError: keys, shapes, dtypes or values do not fit; the message names the tensor.

    Example:
        >>> factors = KroneckerFactors(out_vectors=torch.eye(2), out_values=torch.tensor([1.0, 0.0]),
        ...                            in_vectors=torch.eye(2)[:, :1], in_values=torch.tensor([3.0]))
        >>> q = KroneckerGaussian(mean={"w": torch.zeros(2, 2)}, factors={"w": factors}, prior_precision={"w": 1.0})
        >>> q.variance["w"]
        tensor([[0.2500, 1.0000],
                [1.0000, 1.0000]])
    """

    kind: ClassVar[str] = "kronecker_gaussian"
    symmetric: ClassVar[bool] = True
    mean: Mapping[str, Tensor]
    factors: Mapping[str, KroneckerFactors]
    prior_precision: Mapping[str, float]
    pruned: Mapping[str, Tensor] = field(default_factory=dict)
    meta: PosteriorMeta = field(default_factory=PosteriorMeta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", sorted_tensors(self.mean))
        object.__setattr__(self, "factors", {key: self.factors[key] for key in sorted(self.factors)})
        object.__setattr__(self, "prior_precision", {k: float(d) for k, d in sorted(self.prior_precision.items())})
        object.__setattr__(self, "pruned", sorted_tensors(self.pruned))
        check_mean(self.mean)
        _check_factors(self)
        _check_pruned(self)

    @property
    def variance(self) -> dict[str, Tensor]:
        """diag(Λ⁻¹) in the tensors' shapes; 0 where an entry is known exactly."""
        variance = {}
        for key, mean in self.mean.items():
            if key not in self.factors:
                variance[key] = torch.zeros_like(mean, dtype=torch.promote_types(mean.dtype, torch.float32))
                continue
            factors, delta = self.factors[key], self.prior_precision[key]
            squares_out, squares_in = factors.out_vectors.double() ** 2, factors.in_vectors.double() ** 2
            v = squares_out @ (factors.eigenvalues.double() + delta).reciprocal() @ squares_in.T
            if not factors.complete:
                inside = torch.outer(squares_out.sum(1), squares_in.sum(1))  # how much of an entry is in the span
                v += (1 - inside).clamp(min=0) / delta
            variance[key] = v.reshape(mean.shape).to(mean.device, factors.out_values.dtype)
        return with_zeros(variance, self.pruned)

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One draw m + Λ^-½ ε, ε ~ N(0, I), by the symmetric root: in float32, or float64 where the mean is.

        ε is drawn on the generator's device, for every tensor in sorted order of the keys, those known exactly
        included: so equal seeds give equal ε before and after pruning.

        Args:
            generator: the only source of randomness.

        Returns:
            Tensors by checkpoint key, in sorted order, on the mean's device.
        """
        draw = {}
        for key, mean in self.mean.items():
            eps = standard_normal(mean, generator)
            draw[key] = mean.to(eps.dtype)
            if key in self.factors:
                inside, outside = self._split(key, _as_matrix(eps))
                scaled = inside if outside is None else inside + outside
                draw[key] = draw[key] + scaled.reshape(mean.shape)
        return with_zeros(draw, self.pruned)

    def quadratic_form(self, key: str, vectors: Tensor) -> Tensor:
        """V Λ⁻¹ Vᵀ for one tensor; see `LinearisableGaussian`."""
        rows, classes = vectors.shape[:2]
        if key not in self.factors:
            return vectors.new_zeros(rows, classes, classes)
        if key in self.pruned:
            vectors = vectors.masked_fill(self.pruned[key].to(vectors.device), 0.0)
        parts = self._split(key, vectors.reshape(rows, classes, *_as_matrix(self.mean[key]).shape))
        form = vectors.new_zeros(rows, classes, classes)
        for root in parts:
            if root is not None:
                flat = root.flatten(2)
                form += flat @ flat.mT
        return form

    def zeroed(self, masks: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The masked entries are known to be 0; the others keep their joint distribution."""
        pruned = dict(self.pruned)
        for key in masks.keys() & self.factors.keys():
            mask = masks[key].to(self.mean[key].device, torch.bool)
            pruned[key] = pruned[key] | mask if key in pruned else mask
        return type(self)(
            mean=with_zeros(self.mean, masks),
            factors=self.factors,
            prior_precision=self.prior_precision,
            pruned={key: mask for key, mask in pruned.items() if bool(mask.any())},
            meta=meta,
        )

    def scaled(self, temperature: float, meta: PosteriorMeta) -> Self:
        """G ⊗ K and δ divided by the temperature.

        Raises:
            ValueError: a precision leaves the range of its dtype.
        """
        factors = {}
        for key, f in self.factors.items():
            values = f.out_values / temperature
            delta = self.prior_precision[key] / temperature
            smallest = torch.finfo(values.dtype).tiny
            lost = bool(torch.isinf(values).any()) or bool(((values == 0) & (f.out_values > 0)).any())
            if lost or not smallest <= delta <= 1 / smallest:
                raise ValueError(
                    f"temperature {temperature!r} takes precisions of {key} out of the range of {values.dtype}."
                )
            factors[key] = KroneckerFactors(**{**f.named(), "out_values": values})
        prior = {key: delta / temperature for key, delta in self.prior_precision.items()}
        return type(self)(mean=self.mean, factors=factors, prior_precision=prior, pruned=self.pruned, meta=meta)

    def tensors(self) -> dict[str, Tensor]:
        """`KEY.out_vectors`, `.out_values`, `.in_vectors`, `.in_values`, `.prior_precision` and, if any, `.pruned`."""
        held = {f"{key}.{name}": t for key, factors in self.factors.items() for name, t in factors.named().items()}
        for key, delta in self.prior_precision.items():
            held[f"{key}.prior_precision"] = torch.tensor(delta, dtype=torch.float64)
        return {**held, **{f"{key}.pruned": mask for key, mask in self.pruned.items()}}

    @classmethod
    def from_tensors(cls, point: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """A Gaussian with the point as its mean.

        Raises:
            ValueError: a tensor is missing, unknown, or does not fit.
        """
        names = [f.name for f in fields(KroneckerFactors)]
        held: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            key, _, last = name.rpartition(".")
            if last not in (*names, "prior_precision", "pruned") or key not in point:
                raise ValueError(f"tensor {name} is not part of a Kronecker-factored Gaussian over this adapter.")
            held.setdefault(key, {})[last] = tensor
        for key, parts in held.items():
            if missing := [f"{key}.{name}" for name in (*names, "prior_precision") if name not in parts]:
                raise ValueError(f"a Kronecker-factored Gaussian lacks {', '.join(missing)}.")
            if parts["prior_precision"].numel() != 1:
                raise ValueError(f"{key}.prior_precision must be one number.")
        return cls(
            mean=point,
            factors={key: KroneckerFactors(**{name: parts[name] for name in names}) for key, parts in held.items()},
            prior_precision={key: parts["prior_precision"].item() for key, parts in held.items()},
            pruned={key: parts["pruned"] for key, parts in held.items() if "pruned" in parts},
            meta=meta,
        )

    def _split(self, key: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Λ^-½ X within the factors' span, and outside it (None where nothing is outside); X is (..., out, in)."""
        factors, delta = self.factors[key].to(x), self.prior_precision[key]
        p, outside = factors.split(x)
        inside = factors.out_vectors @ (p * (factors.eigenvalues + delta).rsqrt()) @ factors.in_vectors.mT
        return inside, None if outside is None else outside / math.sqrt(delta)


def _as_matrix(t: Tensor) -> Tensor:
    return t.reshape(-1, 1) if t.ndim < 2 else t


def _check_factors(q: KroneckerGaussian) -> None:
    if unknown := sorted(q.factors.keys() - q.mean.keys()):
        raise ValueError(f"factors of {unknown}, which have no mean.")
    if differing := sorted(q.factors.keys() ^ q.prior_precision.keys()):
        raise ValueError(f"factors and prior_precision must have the same keys; only one of them has {differing}.")
    for key, factors in q.factors.items():
        if not (q.prior_precision[key] > 0 and math.isfinite(q.prior_precision[key])):
            raise ValueError(f"prior_precision of {key} is {q.prior_precision[key]}; it must be positive and finite.")
        if q.mean[key].ndim not in (1, 2):
            raise ValueError(f"mean of {key} has shape {tuple(q.mean[key].shape)}; factors need one or two dimensions.")
        for side, rows in zip(("out", "in"), _as_matrix(q.mean[key]).shape, strict=True):
            vectors, values = factors.named()[f"{side}_vectors"], factors.named()[f"{side}_values"]
            for name, t in ((f"{side}_vectors", vectors), (f"{side}_values", values)):
                if t.dtype not in (torch.float32, torch.float64) or not bool(torch.isfinite(t).all()):
                    raise ValueError(f"{name} of {key} must be finite and float32 or float64; they are {t.dtype}.")
            if vectors.ndim != 2 or vectors.shape[0] != rows or values.shape != vectors.shape[1:]:
                raise ValueError(
                    f"{side}_vectors of {key} have shape {tuple(vectors.shape)} and {side}_values "
                    f"{tuple(values.shape)}; they must be ({rows}, k) and (k,)."
                )
            if vectors.shape[1] > rows:
                raise ValueError(f"{side}_vectors of {key} are {vectors.shape[1]} of {rows} entries; not orthonormal.")
            if bool((values < 0).any()):
                raise ValueError(f"{side}_values of {key} must be at least 0; the smallest is {values.min().item():g}.")
            gram = vectors.double().mT @ vectors.double()
            if not torch.allclose(gram, torch.eye(len(gram)).to(gram), rtol=0, atol=_ORTHONORMAL_TOLERANCE):
                raise ValueError(f"{side}_vectors of {key} must have orthonormal columns.")


def _check_pruned(q: KroneckerGaussian) -> None:
    if unknown := sorted(q.pruned.keys() - q.factors.keys()):
        raise ValueError(f"pruned masks of {unknown}, which have no factors.")
    for key, mask in q.pruned.items():
        if mask.dtype != torch.bool or mask.shape != q.mean[key].shape:
            raise ValueError(f"the pruned mask of {key} must be bool of shape {tuple(q.mean[key].shape)}.")
        if bool((q.mean[key][mask.to(q.mean[key].device)] != 0).any()):
            raise ValueError(f"mean of {key} is not 0 where it is pruned.")
