"""BLoB: a Gaussian over `lora_A`, mean and standard deviations trained together by backpropagation.

    A ~ N(M, diag ρ⁴),  B a point;      prior A ~ N(0, s²)
    ρ starts uniform in (ε/√2, ε)

Training draws with Flipout: one E = ρ² ∘ ε, ε ~ N(0, I), for the micro-batch, and for each example n fair signs
r_n (in), s_n (r), so that example n sees the weights M + E ∘ s_n r_nᵀ:

    h = M x + ((x ∘ r_n) Eᵀ) ∘ s_n

The signs belong to an example: all its tokens see the same weights. Where the input of a layer has no dimension of
examples (rows of tokens, as an expert's), all rows see the same weights. Losses and KL:
`varlora.methods.mean_field_optimizer`.

Source: Wang et al. 2024, arXiv 2406.11675; Flipout: Wen et al. 2018, arXiv 1803.04386.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlora.ivon.noise import Draw
from varlora.methods.mean_field import MeanField
from varlora.methods.options import BlobOptions
from varlora.methods.random_factors import Factor, RandomFactors
from varlora.posterior import DiagonalGaussian, PointMass

LARGEST_PRECISION = 1e30
"""Of an entry with a standard deviation below 1e-15; float32 ends at 3e38."""


@dataclass(frozen=True, kw_only=True)
class Blob(BlobOptions, MeanField):
    """A diagonal Gaussian over A; the defaults are the published recipe.

    `prior_std` is s, of the prior of A's entries, and `initial_std_bound` ε.
    """

    def random_factors(self, model: nn.Module, seed: int) -> RandomFactors:
        """A standard deviation for every entry of A."""
        return RandomFactors(
            model, flipout, std_shape=lambda shape: shape, initial_std_bound=self.initial_std_bound, seed=seed
        )

    def posterior(self, point: PointMass, std: Mapping[str, Tensor]) -> DiagonalGaussian:
        """N(M, diag σ²) on A; every other tensor is known exactly."""
        precision = {}
        for key, mean in point.mean.items():
            if key in std:
                precision[key] = std[key].pow(-2).clamp(max=LARGEST_PRECISION).to(mean.dtype)
            else:
                precision[key] = torch.full_like(mean, math.inf)
        meta = replace(point.meta, prior_precision=dict.fromkeys(sorted(std), self.prior_std**-2))
        return DiagonalGaussian(mean=point.mean, precision=precision, meta=meta)


def flipout(factor: Factor, x: Tensor, output: Tensor, draw: Draw) -> Tensor:
    """What the random part of A adds to A x.

    Args:
        factor: A, with ρ (r, in).
        x: (B, ..., in), rows of examples; or (rows, in).
        output: A x, (B, ..., r).
        draw: the micro-batch's noise.

    Returns:
        ((x ∘ r_n) Eᵀ) ∘ s_n, (B, ..., r).

    Source: arXiv 1803.04386, Section 3.
    """
    rho = factor.sqrt_std
    weights = rho.square() * draw.normal(factor.key, rho)
    examples = (len(x), *[1] * (x.ndim - 2)) if x.ndim > 2 else (1,)
    input_signs = draw.signs(f"{factor.key} input signs", rho.new_empty(*examples, rho.shape[1]))
    output_signs = draw.signs(f"{factor.key} output signs", rho.new_empty(*examples, rho.shape[0]))
    return F.linear(x * input_signs.to(x.dtype), weights.to(x.dtype)) * output_signs.to(output.dtype)
