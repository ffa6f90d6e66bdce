"""ScalaBL: r random numbers for each LoRA module, along directions that are trained as points.

    A = diag(s) Vᵀ,  s ~ N(s̄, diag σ²),  σ = ρ²;      row i of A is s_i v_i, v_i a point;      prior s ~ N(0, p²)
    KL(q ‖ p) = Σ_i ln(p/σ_i) + (σ_i² + s̄_i²)/(2 p²) − 1/2,     q the posterior, p the prior: in this order

From the paper: inference over r numbers, s, with the LoRA factors as the map from there to the weights; A as in a
singular value decomposition, s the singular values; stochastic variational inference for everything at once.

Our choices:
- v_i is a unit vector, so s̄_i is the length of row i of the mean of A. With free v_i the same weights could be had at
  any s̄_i, and the KL would be escaped by small s̄ and long v_i. The posteriors that can be expressed are the same, the
  adapter holds the mean of A itself, and r numbers (σ) for each module is all that is added.
- The start by eigenvectors: A Aᵀ = U diag(s̄²) Uᵀ, A ← Uᵀ A, B ← B U. The product B A, hence the model, is the same,
  and the rows of A become orthogonal with lengths s̄, its singular values. Only an r x r matrix is decomposed.
- p, the weights of the KL, optimizers and rates are BLoB's: N(0, p²) is what BLoB's prior on the entries of A says
  about s along any unit vector, so both methods pull the mean of A alike.
- One draw of s for the micro-batch, shared by its examples.

Source: Samplawski et al. 2025, arXiv 2506.21408.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varlora.ivon.noise import Draw
from varlora.methods.mean_field import MeanField
from varlora.methods.options import ScalablOptions
from varlora.methods.random_factors import Factor, RandomFactors
from varlora.posterior import LowRankGaussian, PointMass

SHORTEST_ROW = 1e-12
"""Length by which shorter rows of A are divided: what is 0 has no direction, and no noise."""


@dataclass(frozen=True, kw_only=True)
class Scalabl(ScalablOptions, MeanField):
    """A Gaussian over the lengths of A's rows.

    `prior_std` is p, of the prior of s; standard deviations start between ε²/2 and ε², ε the `initial_std_bound`.
    """

    def random_factors(self, model: nn.Module, seed: int) -> RandomFactors:
        """A standard deviation for every row of A, whose rows are made orthogonal."""
        factors = RandomFactors(
            model,
            along_rows,
            std_shape=lambda shape: torch.Size((shape[0], 1)),  # PEFT warns of adapter tensors that are no matrices
            initial_std_bound=self.initial_std_bound,
            seed=seed,
        )
        for factor in factors.factors:
            orthogonalise(factor.mean, factor.lora_b.weight)
        return factors

    def posterior(self, point: PointMass, std: Mapping[str, Tensor]) -> LowRankGaussian:
        """A Gaussian with the deviations σ_i v_i, row i of A alone; every other tensor is known exactly."""
        deviations = {}
        for key, mean in point.mean.items():
            if key in std:
                deviations[key] = torch.diag_embed((std[key] * directions(mean.double())).T, dim1=0, dim2=1).to(
                    mean.dtype
                )
            else:
                deviations[key] = mean.new_zeros(0, *mean.shape)
        return LowRankGaussian(
            mean=point.mean,
            diagonal={key: torch.zeros_like(mean) for key, mean in point.mean.items()},
            deviations=deviations,
            shared=False,
            meta=point.meta,
        )


def lengths(mean: Tensor) -> Tensor:
    """s̄, the lengths of A's rows, (r, 1); at least `SHORTEST_ROW`."""
    norms: Tensor = torch.linalg.vector_norm(mean, dim=1, keepdim=True)  # its gradient at 0 is 0, not NaN
    return norms.clamp(min=SHORTEST_ROW)


def directions(mean: Tensor) -> Tensor:
    """Unit vectors v_i along the rows of A, (r, in); 0 where a row is 0."""
    return mean / lengths(mean)


def along_rows(factor: Factor, x: Tensor, output: Tensor, draw: Draw) -> Tensor:
    """What the random part of s adds to A x = s̄ ∘ (Vᵀ x): (σ ∘ ε) ∘ (Vᵀ x).

    Args:
        factor: A, with ρ (r, 1).
        x: (..., in).
        output: A x, (..., r).
        draw: the micro-batch's noise.

    Returns:
        (..., r).
    """
    rho = factor.sqrt_std
    relative = rho.square() * draw.normal(factor.key, rho) / lengths(factor.mean)
    return output * relative.squeeze(1)


@torch.no_grad()
def orthogonalise(lora_a: Tensor, lora_b: Tensor) -> None:
    """Rotates both factors in place so that A's rows are orthogonal, longest first, and B A stays as it is.

    Args:
        lora_a: A, (r, in).
        lora_b: B, (out, r).

    Example:
        >>> lora_a, lora_b = torch.tensor([[1.0, 1.0], [1.0, -2.0]]), torch.eye(2)
        >>> before = lora_b @ lora_a
        >>> orthogonalise(lora_a, lora_b)
        >>> bool((lora_a[0] @ lora_a[1]).abs() < 1e-6), torch.allclose(lora_b @ lora_a, before, atol=1e-6)
        (True, True)
    """
    exact = lora_a.double()
    _, vectors = torch.linalg.eigh(exact @ exact.T)
    rotation = vectors.flip(1)
    lora_a.copy_(rotation.T @ exact)
    lora_b.copy_(lora_b.double() @ rotation)
