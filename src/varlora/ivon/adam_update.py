r"""Variational Adam's step of the mean: AdamW's rule on gradients that were taken at sampled weights.

    g ← β1 g + (1 − β1) ĝ,      s ← γ s + (1 − γ) ĝ²
    m ← m − lr · (g / (1 − β1ᵗ)) / (√(s / (1 − γᵗ)) + ε)

So that AdamW's learning rate carries over. ĝ is the gradient of the mean loss, plus δ m under a fixed prior (the
gradient of KL/λ by the mean; AdamW's decoupled decay is something else). The variance comes from IVON's own Hessian and
not from s: s averages squared gradients of minibatches, which are no estimate of the curvature.

Source: our choice; AdamW is Loshchilov & Hutter 2019, arXiv 1711.05101.
"""

from __future__ import annotations

from torch import Tensor


def adam_update_(
    mean: Tensor,
    momentum: Tensor,
    second_moment: Tensor,
    gradient: Tensor,
    *,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step, in place: the operations of `torch.optim.AdamW(weight_decay=0)` in their order, so to the same bits.

    Args:
        mean: m; changed.
        momentum: g, already updated with `gradient`.
        second_moment: s; changed.
        gradient: ĝ.
        step: t, from 1.
        lr: learning rate.
        beta1: β1, decay of g.
        beta2: γ, decay of s.
        eps: ε.

    Example:
        >>> import torch
        >>> m, s, gradient = torch.zeros(2), torch.zeros(2), torch.tensor([3.0, -0.5])
        >>> adam_update_(m, 0.1 * gradient, s, gradient, step=1, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)
        >>> m        # the first step has the size of the learning rate, whatever the gradient's
        tensor([-0.0100,  0.0100])
    """
    second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second_moment.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    mean.addcdiv_(momentum, root, value=-(lr / (1 - beta1**step)))
