"""IVON's step written as its equations read, with either update: slow, for tests and for readers.

`ivon/optimizer.py` must agree with this file to rounding. Nothing here is clever on purpose.

Source: Shen et al. 2024, arXiv 2402.17641, Algorithm 1; adaptive prior: Cong et al. 2025, arXiv 2506.14280.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReferenceState:
    """One tensor's posterior and running averages.

    Attributes:
        mean: m.
        momentum: g, same shape.
        hessian: h, same shape.
        delta: δ, the prior's precision divided by the effective sample size.
        step: t, the number of steps taken.
        second_moment: s, same shape; of the Adam update.
    """

    mean: Tensor
    momentum: Tensor
    hessian: Tensor
    delta: float
    step: int = 0
    second_moment: Tensor | None = None


def reference_step(
    state: ReferenceState,
    gradient: Callable[[Tensor], Tensor],
    noise: Sequence[Tensor],
    *,
    lr: float,
    ess: float,
    beta1: float,
    beta2: float,
    clip_radius: float,
    learning_rate_scale: float = 1.0,
    decay_mean: bool = True,
) -> ReferenceState:
    """Takes one IVON step, with the Newton update and S = len(noise) Monte-Carlo draws.

    Args:
        state: the tensor's state before the step.
        gradient: the gradient of the mean minibatch loss as a function of the weights.
        noise: S standard-normal tensors of the mean's shape.
        lr: learning rate.
        ess: λ.
        beta1: decay of the momentum.
        beta2: decay of the Hessian.
        clip_radius: ξ.
        learning_rate_scale: h0 + δ for `rescale_lr=True`, else 1.
        decay_mean: False drops δ m from the step (adaptive prior).

    Returns:
        The state after the step.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> start = ReferenceState(mean=one, momentum=0 * one, hessian=one, delta=0.0)
        >>> after = reference_step(start, lambda w: w, [0 * one], lr=0.1, ess=1.0, beta1=0.9, beta2=0.5,
        ...                        clip_radius=float("inf"))
        >>> after.hessian.item(), round(after.mean.item(), 6)
        (0.625, 0.84)
    """
    m, g, h, delta = state.mean, state.momentum, state.hessian, state.delta
    t = state.step + 1

    g_hat, f = _estimates(state, gradient, noise, ess)
    g = beta1 * g + (1 - beta1) * g_hat
    h = beta2 * h + (1 - beta2) * f + 0.5 * (1 - beta2) ** 2 * (h - f) ** 2 / (h + delta)
    direction = (g / (1 - beta1**t) + (delta * m if decay_mean else 0)) / (h + delta)
    m = m - lr * learning_rate_scale * direction.clamp(-clip_radius, clip_radius)
    return replace(state, mean=m, momentum=g, hessian=h, step=t)


def reference_adam_step(
    state: ReferenceState,
    gradient: Callable[[Tensor], Tensor],
    noise: Sequence[Tensor],
    *,
    lr: float,
    ess: float,
    beta1: float,
    beta2: float,
    adam_beta2: float,
    eps: float,
    decay_mean: bool = True,
) -> ReferenceState:
    """Takes one step of variational Adam with S = len(noise) Monte-Carlo draws.

    Args:
        state: the tensor's state before the step, with its second moment.
        gradient: the gradient of the mean minibatch loss as a function of the weights.
        noise: S standard-normal tensors of the mean's shape.
        lr: AdamW's learning rate.
        ess: λ.
        beta1: β1, decay of the momentum.
        beta2: β2, decay of the Hessian.
        adam_beta2: γ, decay of the second moment.
        eps: ε.
        decay_mean: False drops δ m from the gradient (adaptive prior).

    Returns:
        The state after the step.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> start = ReferenceState(mean=one, momentum=0 * one, hessian=one, delta=0.0, second_moment=0 * one)
        >>> after = reference_adam_step(start, lambda w: w, [0 * one], lr=0.1, ess=1.0, beta1=0.9, beta2=0.5,
        ...                             adam_beta2=0.999, eps=0.0)
        >>> after.hessian.item(), round(after.mean.item(), 6)
        (0.625, 0.9)
    """
    m, g, s, h, delta = state.mean, state.momentum, state.second_moment, state.hessian, state.delta
    assert s is not None
    t = state.step + 1

    g_hat, f = _estimates(state, gradient, noise, ess)
    g_hat = g_hat + (delta * m if decay_mean else 0)
    g = beta1 * g + (1 - beta1) * g_hat
    s = adam_beta2 * s + (1 - adam_beta2) * g_hat**2
    h = beta2 * h + (1 - beta2) * f + 0.5 * (1 - beta2) ** 2 * (h - f) ** 2 / (h + delta)
    m = m - lr * (g / (1 - beta1**t)) / ((s / (1 - adam_beta2**t)).sqrt() + eps)
    return replace(state, mean=m, momentum=g, second_moment=s, hessian=h, step=t)


def _estimates(
    state: ReferenceState, gradient: Callable[[Tensor], Tensor], noise: Sequence[Tensor], ess: float
) -> tuple[Tensor, Tensor]:
    """The mean gradient at S draws, and Price's estimate of the Hessian."""
    precision = ess * (state.hessian + state.delta)
    sigma = 1 / precision.sqrt()
    gradients = [gradient(state.mean + sigma * e) for e in noise]
    g_hat = sum(gradients[1:], gradients[0]) / len(noise)
    products = [sigma * e * G for e, G in zip(noise, gradients, strict=True)]
    n_g_hat = sum(products[1:], products[0]) / len(noise)
    return g_hat, precision * n_g_hat
