"""Log-likelihoods of texts, averaged as probabilities over the draws of a posterior.

Over draws θ_s ~ q of the weights, a text y that follows x has

    log p(y | x) = log (1/S) Σ_s p(y | x; θ_s)

and of the choices C of one row, among which each draw divides its probability as `varlora eval` has it,

    log p(y | x) = log (1/S) Σ_s π_s(y)  +  log (1/S) Σ_s P_s,     P_s = Σ_{c ∈ C} p(c | x; θ_s),
                                                                   π_s = softmax over C of log p(c | x; θ_s) / T.

With one draw and T = 1 both are that draw's log-likelihood.

Source: arXiv 2402.17641 (posterior averaging).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def average_completions(log_likelihoods: Tensor) -> Tensor:
    """Log of a text's probability averaged over the draws.

    Args:
        log_likelihoods: (N, S), of N texts under S draws.

    Returns:
        (N,).

    Example:
        >>> average_completions(torch.tensor([[0.2, 0.4]]).log()).exp()
        tensor([0.3000])
    """
    return torch.logsumexp(log_likelihoods, dim=1) - math.log(log_likelihoods.shape[1])


def average_choices(log_likelihoods: Tensor, logit_temperature: float = 1.0) -> Tensor:
    """Log-likelihoods of one row's choices, which each draw has divided its probability among.

    Args:
        log_likelihoods: (C, S), of C choices under S draws.
        logit_temperature: T; flattens each draw's division, and leaves the draw's total.

    Returns:
        (C,): their softmax is (1/S) Σ_s π_s, their logsumexp is log (1/S) Σ_s P_s.

    Example:
        >>> likelihoods = torch.tensor([[0.3, 0.1], [0.1, 0.1]])       # draws give 3/4 and 1/2 to the first choice
        >>> average_choices(likelihoods.log()).exp() / 0.3             # of .3, their mean total
        tensor([0.6250, 0.3750])
    """
    totals = torch.logsumexp(log_likelihoods, dim=0)
    shares = torch.log_softmax(log_likelihoods / logit_temperature, dim=0)
    # A draw that finds all choices impossible divides nothing, evenly.
    shares = shares.masked_fill(totals.isneginf(), -math.log(len(log_likelihoods)))
    return average_completions(shares) + average_completions(totals[None])
