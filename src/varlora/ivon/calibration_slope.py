"""What held-out rows say under draws of the weights, row by row: calibration and gain, extrapolated to ten draws.

The equations are those of `ivon.ess_control`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PREDICTED_DRAWS = 10
"""Draws that predictions average, in opposite pairs (`varlora.prediction.prediction_setup.SAMPLES`)."""


def moments(logits: Tensor, labels: Tensor) -> Tensor:
    """What the control keeps of one draw's logits: log p(label), E_p[log p] and Var_p[log p] of every answer.

    Args:
        logits: (n, C); -inf for choices that do not exist.
        labels: (n,) class indices.

    Returns:
        (3, n), float64.

    Example:
        >>> moments(torch.zeros(1, 2), torch.tensor([0]))
        tensor([[-0.6931],
                [-0.6931],
                [ 0.0000]], dtype=torch.float64)
    """
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    probs = log_probs.exp()
    finite = log_probs.masked_fill(torch.isinf(log_probs), 0.0)
    expected = (probs * finite).sum(-1)
    variance = (probs * (finite - expected[:, None]).square()).sum(-1)
    return torch.stack([log_probs.gather(-1, labels[:, None])[:, 0], expected, variance]).double()


def calibration_slope(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and information of every answer at T = 1; see the module.

    Args:
        draws: (S, 3, n), the `moments` of S draws.

    Returns:
        slope (n,), positive where the average of the draws is over-confident, and information (n,).

    Example:
        >>> sure = moments(torch.tensor([[3.0, 0.0]] * 2), torch.tensor([0, 1]))
        >>> slope, _ = calibration_slope(sure[None])
        >>> [round(s, 2) for s in slope.tolist()]              # right, and wrong, with probability .95
        [-0.14, 2.86]
    """
    of_label, expected, variance = draws.unbind(1)
    weights = of_label.softmax(0)
    return (weights * (expected - of_label)).sum(0), variance.mean(0)


def told_by(at_mean: Tensor, draws: Tensor) -> dict[str, Tensor]:
    """What P answers say of the mean, and of an average of ten draws in five opposite pairs; see the module.

    Args:
        at_mean: (3, P), the `moments` at the mean.
        draws: (K, 2, 3, P), those of K >= 2 opposite pairs of draws.

    Returns:
        what `HeldOutRecord.with_rows` takes: slope, information, gain, loss, mean_slope, mean_information, each (P,).

    Example:
        >>> at_mean = moments(torch.tensor([[3.0, 0.0]]), torch.tensor([1]))
        >>> told = told_by(at_mean, at_mean.expand(2, 2, 3, 1))              # draws without noise are the mean
        >>> round(told["slope"].item(), 2), round(told["mean_slope"].item(), 2), told["gain"].item()
        (2.86, 2.86, 0.0)
    """
    pairs = len(draws)
    slope, information = calibration_slope(draws.flatten(0, 1))
    mean_slope, mean_information = calibration_slope(at_mean[None])
    one_pair = torch.stack([calibration_slope(pair)[0] for pair in draws]).mean(0)
    log_probs = draws[:, :, 0]  # (K, 2, P)
    loss = math.log(2 * pairs) - log_probs.flatten(0, 1).logsumexp(0)
    loss_of_one = (math.log(2) - log_probs.logsumexp(1)).mean(0)
    # a + b/K at K pairs and a + b at one give a + b/5
    share = (2 / PREDICTED_DRAWS - 1 / pairs) / (1 - 1 / pairs)
    loss = loss + share * (loss_of_one - loss)
    return {
        "slope": slope + share * (one_pair - slope),
        "information": information,
        "gain": -at_mean[0] - loss,
        "loss": loss,
        "mean_slope": mean_slope,
        "mean_information": mean_information,
    }
