r"""Variational Adam's step of the mean: AdamW's rule on gradients that were taken at sampled weights.

    g ← β1 g + (1 − β1) ĝ,      s ← γ s + (1 − γ) ĝ²
    m ← m − lr · (g / (1 − β1ᵗ)) / (√(s / (1 − γᵗ)) + ε)

So that AdamW's learning rate carries over. ĝ is the gradient of the mean loss, plus δ m under a fixed prior (the
gradient of KL/λ by the mean; AdamW's decoupled decay is something else). The variance comes from IVON's own Hessian and
not from s: s averages squared gradients of minibatches, which are no estimate of the curvature.

Source: our choice; AdamW is Loshchilov & Hutter 2019, arXiv 1711.05101.
"""

from __future__ import annotations

import torch
from torch import Tensor


def adam_update_(
    means: list[Tensor],
    momenta: list[Tensor],
    second_moments: list[Tensor],
    gradients: list[Tensor],
    *,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step, in place: the operations of `torch.optim.AdamW(weight_decay=0)` in their order, so to the same bits.

    Args:
        means: m of each tensor; changed.
        momenta: g, already updated with `gradients`.
        second_moments: s; changed.
        gradients: ĝ.
        step: t, from 1.
        lr: learning rate.
        beta1: β1, decay of g.
        beta2: γ, decay of s.
        eps: ε.

    Example:
        >>> import torch
        >>> m, s, gradient = torch.zeros(2), torch.zeros(2), torch.tensor([3.0, -0.5])
        >>> options = dict(step=1, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)
        >>> adam_update_([m], [0.1 * gradient], [s], [gradient], **options)
        >>> m        # the first step has the size of the learning rate, whatever the gradient's
        tensor([-0.0100,  0.0100])
    """
    torch._foreach_mul_(second_moments, beta2)
    torch._foreach_addcmul_(second_moments, gradients, gradients, value=1 - beta2)
    roots = torch._foreach_sqrt(second_moments)
    torch._foreach_div_(roots, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(means, momenta, roots, value=-(lr / (1 - beta1**step)))
