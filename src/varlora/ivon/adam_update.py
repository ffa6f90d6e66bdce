r"""Variational Adam's step of the mean: AdamW's rule on gradients that were taken at sampled weights.

    g ← β1 g + (1 − β1) ĝ,      s ← γ s + (1 − γ) ĝ²
    m ← m − lr · (g / (1 − β1ᵗ)) / (√(s / (1 − γᵗ)) + ε)

So that AdamW's learning rate carries over. ĝ is the gradient of the mean loss, plus δ m under a fixed prior (the
gradient of KL/λ by the mean, Adam's "weight decay"; AdamW's decoupled decay is something else). The variance comes from
IVON's own Hessian and not from s: s averages squared gradients of minibatches, which are no estimate of the curvature.

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
    steps: list[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 0.0,
) -> None:
    """One step, in place, by torch's fused kernel: one pass over all tensors.

    Args:
        means: m of each tensor, on one device and in one dtype; changed.
        momenta: g; changed.
        second_moments: s; changed.
        gradients: the gradients of the mean loss.
        steps: t, from 1, scalars of float32.
        lr: learning rate.
        beta1: β1, decay of g.
        beta2: γ, decay of s.
        eps: ε.
        decay: δ.

    Example:
        >>> import torch
        >>> m, g, s, gradient = torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.tensor([3.0, -0.5])
        >>> options = dict(steps=[torch.tensor(1.0)], lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)
        >>> adam_update_([m], [g], [s], [gradient], **options)
        >>> m        # the first step has the size of the learning rate, whatever the gradient's
        tensor([-0.0100,  0.0100])
    """
    if means[0].device.type != "cpu":  # where the kernel reads t; the state's is on the host
        steps = list(torch.stack(steps).to(means[0].device, non_blocking=True).unbind())
    changed = means, momenta, second_moments
    flat = [[tensor.contiguous() for tensor in tensors] for tensors in changed]  # as the kernel takes all to be
    torch._fused_adam_(
        flat[0],
        [gradient.contiguous() for gradient in gradients],
        flat[1],
        flat[2],
        [],
        steps,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
    for tensors, copies in zip(changed, flat, strict=True):
        for tensor, copy in zip(tensors, copies, strict=True):
            if copy is not tensor:
                tensor.copy_(copy)
