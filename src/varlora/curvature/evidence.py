"""How likely the data are under a prior precision, by Laplace's method, and the prior that makes them likeliest.

With weights θ, curvature H with eigenvalues h_j, and a prior N(0, 1/δ_i) on the entries of each tensor i,

    log p(D | δ) ≈ log p(D | θ) − ½ Σ_i ( Σ_j log(1 + h_ij / δ_i) + δ_i ‖θ_i‖² )

H and δ separate in the diagonal and the Kronecker-factored form alike, because a tensor has one δ. The best δ satisfies

    Σ_j h_j / (h_j + δ) / δ = ‖θ‖²

whose left side falls from infinity to 0: one root, if some h > 0 and θ ≠ 0. On a log-log scale its slope is between
−2 and −1, so from any point above the root, the root is within the size of the remaining error.

Source: MacKay 1992 (the evidence framework); Immer et al. 2021, arXiv 2104.04975. The optimum by a bracketed root is
our choice; gradient steps on log δ stop short of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from varlora.curvature.ggn import Curvature


class NoBestPriorError(ValueError):
    """The evidence has no finite, positive best prior precision."""


def log_marginal_likelihood(curvature: Curvature, prior_precision: float | Mapping[str, float]) -> float:
    """The log evidence of a prior.

    Args:
        curvature: see `varlora.curvature.curvature_of`.
        prior_precision: δ > 0, one for all tensors or by key; infinity where a tensor of zeros is known exactly.

    Raises:
        ValueError: a δ is missing or not > 0.

    Example:
        >>> from varlora.curvature import Curvature
        >>> curvature = Curvature(weights={"w": torch.tensor([1.0])}, log_likelihood=-2.0, num_examples=1,
        ...                       diagonal={"w": torch.tensor([math.e**2 - 1])})
        >>> round(log_marginal_likelihood(curvature, 1.0), 6)     # −2 − ½ (2 + 1)
        -3.5
    """
    value = curvature.log_likelihood
    for key, h in curvature.eigenvalues.items():
        delta = prior_precision.get(key) if isinstance(prior_precision, Mapping) else prior_precision
        if delta is None or not delta > 0:
            raise ValueError(f"the prior precision of {key} is {delta}; it must be positive.")
        norm = _squared_norm(curvature.weights[key])
        penalty = delta * norm if norm else 0.0
        value -= 0.5 * (float(torch.log1p(h.double() / delta).sum()) + penalty)
    return value


def best_prior_precision(curvature: Curvature, key: str | None = None) -> float:
    """The δ that maximises the log evidence, to rounding.

    Args:
        curvature: see `varlora.curvature.curvature_of`.
        key: of the tensor whose own δ is wanted; None: one δ for all tensors.

    Raises:
        NoBestPriorError: all weights are 0 (the evidence rises with δ for ever), or all curvature is (it rises as δ
            goes to 0).

    Example:
        >>> from varlora.curvature import Curvature
        >>> curvature = Curvature(weights={"w": torch.tensor([1.0])}, log_likelihood=0.0, num_examples=1,
        ...                       diagonal={"w": torch.tensor([2.0])})
        >>> round(best_prior_precision(curvature), 12)    # 2 / (2 + δ) / δ = 1
        0.732050807569
    """
    keys = list(curvature.weights) if key is None else [key]
    eigenvalues = curvature.eigenvalues
    h = torch.cat([eigenvalues[k].double() for k in keys])
    return _root(h, sum(_squared_norm(curvature.weights[k]) for k in keys), key or "the adapter")


def _root(h: Tensor, squared_norm: float, name: str) -> float:
    positive = h[h > 0]
    if not len(positive) or not squared_norm > 0:
        zero, towards = ("curvature", "0") if not len(positive) else ("weight", "infinity")
        raise NoBestPriorError(
            f"every {zero} of {name} is 0, so the evidence rises as the prior precision goes to {towards} and none is "
            "best. Did it train? Use one prior for all tensors, or choose it on validation rows."
        )

    def excess(log_delta: float) -> float:
        """log of the left side over the right."""
        delta = math.exp(log_delta)
        return math.log(float((positive / (positive + delta)).sum())) - log_delta - math.log(squared_norm)

    high = math.log(len(positive)) - math.log(squared_norm)
    low = high + min(excess(high), 0.0)
    while high - low > 1e-14 * max(1.0, abs(high)):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def _squared_norm(weights: Tensor) -> float:
    return float((weights.double() ** 2).sum())
