"""AdamW on the data's loss and, in the same step, gradient descent on a closed-form KL divergence.

A Gaussian entry has mean m and standard deviation σ = ρ²; the prior is N(0, s²). Per step t = 1, 2, ...

    1. AdamW step on the gradient of the mean negative log-likelihood per example, with respect to m, ρ and all else
    2. (m, ρ) ← (m, ρ) − lr_KL w_i ∇ KL(q ‖ p),     KL = Σ ln(s/σ) + (σ² + m²)/(2 s²) − 1/2
                                                    dKL/dm = m/s²,   dKL/dρ = 2 ρ³/s² − 2/ρ
    w_i = 2^i / (2^(M+1) − 1),  i = ((t − 1) mod M) + 1,  M = int(100 N^(π/8) / batch)

Over a cycle of M steps the weights sum to almost 1, nearly all of it in the last few steps.

Our choices: M is at least 1. A KL step stops at the KL's own minimum (m = 0, σ = s) where plain descent would jump past
it, since 2/ρ has no bound as ρ approaches 0. Without the cycle ("plain Bayes") the loss is the mean negative
log-likelihood + KL/N, all of it AdamW's: two optimizers of different scale have no common stationary point, so
descending KL/N beside AdamW would not end at the best q.

Source: Wang et al. 2024, arXiv 2406.11675.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def gaussian_kl(mean: Tensor, sqrt_std: Tensor, prior_std: float) -> Tensor:
    """KL( N(m, ρ⁴) ‖ N(0, s²) ) in nats, summed.

    Args:
        mean: m. May hold more entries than `sqrt_std`: the Gaussian scalars are then the norms of groups of entries
            (a row of `mean` for each ρ, say), whose squares sum to the same.
        sqrt_std: ρ, σ = ρ².
        prior_std: s.

    Example:
        >>> import torch
        >>> gaussian_kl(torch.zeros(3), torch.full((3,), 0.5), prior_std=0.25).item()
        0.0

    Source: arXiv 2406.11675.
    """
    variance = sqrt_std.pow(4)
    spread = math.log(prior_std) - variance.log() / 2 + variance / (2 * prior_std**2) - 0.5
    return spread.sum() + mean.square().sum() / (2 * prior_std**2)


def kl_gradients(mean: Tensor, sqrt_std: Tensor, prior_std: float) -> tuple[Tensor, Tensor]:
    """The gradients of `gaussian_kl` with respect to m and ρ.

    Example:
        >>> import torch
        >>> kl_gradients(torch.ones(1), torch.ones(1), prior_std=1.0)
        (tensor([1.]), tensor([0.]))
    """
    return mean / prior_std**2, 2 * sqrt_std.pow(3) / prior_std**2 - 2 / sqrt_std


def kl_cycle(num_examples: int, batch_size: int) -> int:
    """M, the number of steps over which the KL's weights sum to almost 1; at least 1.

    Args:
        num_examples: N.
        batch_size: examples per optimizer step, over all micro-batches and ranks.

    Example:
        >>> kl_cycle(640, 4)
        316
    """
    return max(1, int(100 * num_examples ** (math.pi / 8) / batch_size))


def kl_weight(step: int, cycle: int) -> float:
    """w_i = 2^i / (2^(M+1) − 1), the KL's weight at step t.

    Computed as 2^(i−M−1) / (1 − 2^−(M+1)): 2^(M+1) itself leaves the range of float64 at M = 1023.

    Args:
        step: t, from 1.
        cycle: M.

    Example:
        >>> [round(kl_weight(t, cycle=2), 4) for t in (1, 2, 3)]
        [0.2857, 0.5714, 0.2857]
    """
    i = (step - 1) % cycle + 1
    return math.ldexp(1 / (1 - math.ldexp(1.0, -(cycle + 1))), i - cycle - 1)


class MeanFieldAdamW(torch.optim.AdamW):
    """AdamW without weight decay, with the KL of some Gaussian parameters; see the module.

    The count of steps is part of the state, so a resumed run goes on in the same place of the cycle. Gradient clipping
    acts on the data's gradient only; the KL's rate follows the scheduler of `lr`, in constant proportion.

    Args:
        params: all trained parameters.
        gaussians: pairs (m, ρ) among them.
        prior_std: s, > 0.
        num_examples: N.
        cycle: M; None: KL/N is part of AdamW's loss in every step.
        lr: AdamW's learning rate, > 0.
        kl_lr: learning rate of the KL's descent, before the schedule; of no effect without a cycle.
        betas: AdamW's.
        eps: AdamW's.

    Raises:
        ValueError: there is no Gaussian parameter.

    Example:
        >>> import torch
        >>> mean, rho = (torch.nn.Parameter(torch.full((1,), v)) for v in (0.4, 0.1))
        >>> options = dict(gaussians=[(mean, rho)], prior_std=0.2, num_examples=640, cycle=1, lr=0.1, kl_lr=0.001)
        >>> optimizer = MeanFieldAdamW([mean, rho], **options)
        >>> mean.grad, rho.grad = torch.zeros(1), torch.zeros(1)
        >>> optimizer.step()                        # the data say nothing; the KL pulls m to 0 and σ to 0.2
        >>> round(mean.item(), 5), round(rho.item(), 5)
        (0.39333, 0.1133)

    Source: arXiv 2406.11675.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        gaussians: Sequence[tuple[nn.Parameter, nn.Parameter]],
        prior_std: float,
        num_examples: int,
        cycle: int | None,
        lr: float,
        kl_lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not gaussians:
            raise ValueError("there is no Gaussian parameter; use torch.optim.AdamW.")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=0.0)
        self.gaussians = tuple(gaussians)
        self.prior_std = prior_std
        self.num_examples = num_examples
        self.cycle = cycle
        self.kl_lr_ratio = kl_lr / lr
        start = torch.cat([rho.detach().abs().flatten() for _, rho in self.gaussians]).median().item()
        for group in self.param_groups:
            group["step_index"] = 0
            group["sqrt_std_without_data"] = start

    @property
    def std_without_data(self) -> float:
        """Where the KL's descent alone would have taken the median σ by now: how much of σ the schedule has made."""
        return float(self.param_groups[0]["sqrt_std_without_data"]) ** 2

    @property
    def step_index(self) -> int:
        """How many steps were taken; the noise of a step is keyed by it."""
        return int(self.param_groups[0]["step_index"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see the module.

        Args:
            closure: evaluates the model, calls backward and returns the loss.

        Raises:
            RuntimeError: a mean got a gradient and its ρ none: the gradient was not taken at sampled weights.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(mean.grad is not None and rho.grad is None for mean, rho in self.gaussians):
            raise RuntimeError(
                "a Gaussian weight got a gradient that did not pass through its noise. Run the forward pass through "
                "the whole model in training mode; the weight must be read by the forward of its own module."
            )
        if self.cycle is None:
            self._add_kl_gradients(1 / self.num_examples)
            super().step()
        else:
            super().step()
            rate = self.param_groups[0]["lr"] * self.kl_lr_ratio * kl_weight(self.step_index + 1, self.cycle)
            self._descend_kl(rate)
        for group in self.param_groups:
            group["step_index"] += 1
        return loss

    def _add_kl_gradients(self, weight: float) -> None:
        for pair in self.gaussians:
            for p, gradient in zip(pair, kl_gradients(*pair, self.prior_std), strict=True):
                p.grad = gradient * weight if p.grad is None else p.grad.add_(gradient, alpha=weight)

    def _descend_kl(self, rate: float) -> None:
        for mean, rho in self.gaussians:
            mean.mul_(max(0.0, 1 - rate / self.prior_std**2))
            rho.copy_(self._widened(rho.abs(), rate).copysign(rho))
        for group in self.param_groups:
            alone = torch.tensor(group["sqrt_std_without_data"], dtype=torch.float64)
            group["sqrt_std_without_data"] = self._widened(alone, rate).item()

    def _widened(self, size: Tensor, rate: float) -> Tensor:
        """|ρ| after a step down the KL, never past the KL's minimum at ρ² = s."""
        if rate <= 0:
            return size
        best = math.sqrt(self.prior_std)
        moved = size - rate * kl_gradients(size, size, self.prior_std)[1]
        return torch.where(size < best, moved.clamp(max=best), moved.clamp(min=best))
