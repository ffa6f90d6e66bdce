r"""The movement prior: each tensor's own N(m0, s²), as wide as training has moved the tensor.

m0 is where training began: LoRA's random A says nothing yet, and a trained layer says what it was trained for. As for
the adaptive prior, dKL/ds² = 0 gives, now around m0,

    s² = mean_j((m_j − m0_j)² + v_j).

While a tensor has moved little, v is s² but for a little, so this equation feeds on itself: the noise outgrows what has
been learned (of a movement of .01, five times over at N = 300), and a short training drowns in it; and where a
tensor has moved far, v is small beside the movement, and the noise less than held-out rows ask for. Instead

    s = w · √mean_j((m_j − m0_j)²),        at least 1e-4,

so that the noise begins at nearly nothing and grows with what is learned, at any learning rate. s follows it a tenth of
the way in logarithms at each step. The width w of `prior_width="auto"` is 4 t/T after t of T steps
(`optim.auto.set_prior_width`): the noise of the beginning costs accuracy that the noise of the end does not
(docs/decisions.md). The prior is tempered with the likelihood: λδ = (λ/λ_0)/s², with λ_0 where λ began, so that v is in
proportion to λ_0/λ:

    v = (λ_0/λ) · 1 / (λ_0 h + 1/s²).

Source: our choice (docs/auto.md). A prior around the start is Li et al. 2018, arXiv 1802.01483 (L2-SP); the closed form
Cong et al. 2025, arXiv 2506.14280; tempering prior and likelihood alike, Wenzel et al. 2020, arXiv 2002.02405.
"""

from __future__ import annotations

from torch import Tensor

from varlora.optim.adaptive_prior import average, followed

FINAL_WIDTH = 4.0
"""w where training ends, of `prior_width="auto"`."""
PRIOR_STD_MIN = 1e-4


def growing_width(share: float) -> float:
    """w of `prior_width="auto"` when a share of the training's steps has been taken.

    Example:
        >>> growing_width(0.0), growing_width(0.5), growing_width(1.0)
        (0.0, 2.0, 4.0)
    """
    return FINAL_WIDTH * min(share, 1.0)


def movement_prior_precision(mean: Tensor, start: Tensor, width: float) -> Tensor:
    """1/s² of the movement so far, a scalar tensor.

    Args:
        mean: m, any shape; part of it may be on other ranks.
        start: m0, same shape.
        width: w, s in units of the root mean square of the movement.

    Example:
        >>> import torch
        >>> start = torch.tensor([0.3, -0.2])
        >>> round(movement_prior_precision(start + 0.1, start, width=3.0).item())       # s = .3
        11
        >>> round(movement_prior_precision(start, start, width=3.0).item())
        100000000
    """
    moved = average((mean - start).square())
    return 1 / (width**2 * moved).clamp(min=PRIOR_STD_MIN**2)


def followed_prior_precision(precision: Tensor, mean: Tensor, start: Tensor, width: float) -> Tensor:
    """1/s² after a step: a tenth of the way, in logarithms, to `movement_prior_precision`.

    Args:
        precision: the present 1/s², a scalar tensor.
        mean: m.
        start: m0.
        width: w.

    Example:
        >>> import torch
        >>> start = torch.zeros(3)
        >>> present = torch.tensor(1e8)
        >>> round(followed_prior_precision(present, start + 1 / 3, start, width=3.0).item() / 1e7, 2)   # to 1e8 ** .9
        1.58
    """
    return followed(precision, movement_prior_precision(mean, start, width))
