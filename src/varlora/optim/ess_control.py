r"""λ of `ess="auto"`, steered so that predictions for held-out rows are calibrated.

λ weighs the fit against the posterior's entropy: a smaller one gives wider noise, hence flatter predictions. A user who
scales the logits by a temperature T asks held-out rows for the T that minimises their NLL. Here the same rows are asked
whether T = 1 is that minimum already, and λ is moved until it is. For the average p(y) = (1/S) Σ_s softmax(f_s)_y over
S draws of the weights, with w_s ∝ softmax(f_s)_y and p_s = softmax(f_s), one row contributes to the derivatives of
L(b) = −log (1/S) Σ_s softmax(b f_s)_y at b = 1/T = 1

    slope           dL/db  = Σ_s w_s (E_p_s[f_s] − f_s,y)             (> 0: over-confident)
    information     I      = (1/S) Σ_s Var_p_s[f_s]                    (Fisher information of log T)

so that over n held-out rows one scoring step estimates the temperature that is missing, with its standard error:

    log T̂ = n mean(slope) / (n I + 4),        s.e. = √(n var(slope)) / (n I + 4)

(4: a prior of sd 1/2 on log T). The law of control, at every measurement:

    z = sign(log T̂) · max(|log T̂| − s.e., 0),      log λ ← log λ − clip(2 z, ±1),      λ within [1/10, 100] · λ_0

with λ_0 = 100 N. Inside one such error nothing moves. While λ > λ_0 and nothing is wrong, λ returns a tenth of the way
(in logarithms) to λ_0. The means are running averages, half old and half new, over small batches of the held-out rows
in turn; with weight w_k on measurement k of n_k rows, their effective number of rows is

    n = (Σ_k w_k)² / Σ_k (w_k² / n_k),        but never more than there are rows

(96 after many measurements of 32). The gain, 2: the noise acts with delay, and a unit of log λ moves log T by less than
a half.

It is no minimisation of the held-out NLL over λ: the fixed point is a first-order condition in the one direction, the
confidence, in which λ mainly acts. Source: our choice (docs/auto.md); temperature scaling arXiv 1706.04599.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

PRIOR_INFORMATION = 4.0
"""Precision of the prior on log T."""
LARGEST_MOVE = 1.0
"""Bound on a single move of log λ, and on log T."""
BOUNDS = (0.1, 100.0)
"""Of λ/λ_0. Under the movement prior the noise has then at most 10 times the variance that it has at λ_0, beyond which
training unlearns what it has learned, and at least a hundredth of it."""
DECAY = 0.5
"""What is left of the running averages after a measurement."""
GAIN = 2.0
RETURN = 0.9
"""What is left of log(λ/λ_0) > 0 after a measurement that asks for no move."""


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


@dataclass(frozen=True, kw_only=True)
class HeldOutRecord:
    """Running averages over the held-out rows; plain numbers, which a checkpoint of the optimizer holds.

    Attributes:
        measurements: how many times held-out rows were predicted.
        weight: sum of the averages' weights; 0 before the first measurement.
        inverse_rows: sum of the squared weights, each divided by the number of rows it weighs.
        slope: mean of the rows' slopes, times `weight`.
        slope_square: of their squares.
        information: of the rows' information.
        gain: of log p averaged over draws − log p at the mean.
        gain_square: of its square.
        loss: of the NLL averaged over draws.
    """

    measurements: int = 0
    weight: float = 0.0
    inverse_rows: float = 0.0
    slope: float = 0.0
    slope_square: float = 0.0
    information: float = 0.0
    gain: float = 0.0
    gain_square: float = 0.0
    loss: float = 0.0

    def with_rows(self, slope: Tensor, information: Tensor, gain: Tensor, loss: Tensor) -> HeldOutRecord:
        """The averages with one more measurement, of n rows.

        Args:
            slope: (n,), see the module.
            information: (n,).
            gain: (n,), by how many nats averaging over draws lowers the NLL below the mean's.
            loss: (n,), the NLL averaged over draws.

        Example:
            >>> one = torch.ones(4)
            >>> HeldOutRecord().with_rows(slope=one, information=one, gain=one, loss=one).log_temperature(rows=4)
            (0.5, 0.0)
        """
        new = {
            "weight": 1.0,
            "slope": slope.mean().item(),
            "slope_square": slope.square().mean().item(),
            "information": information.mean().item(),
            "gain": gain.mean().item(),
            "gain_square": gain.square().mean().item(),
            "loss": loss.mean().item(),
        }
        if not all(map(math.isfinite, new.values())):  # a model that has diverged says nothing about λ
            return self.without_rows()
        averaged = {name: DECAY * getattr(self, name) + (1 - DECAY) * value for name, value in new.items()}
        inverse_rows = DECAY**2 * self.inverse_rows + (1 - DECAY) ** 2 / len(slope)
        return HeldOutRecord(measurements=self.measurements + 1, inverse_rows=inverse_rows, **averaged)

    def without_rows(self) -> HeldOutRecord:
        """The averages after a measurement that found nothing."""
        return replace(self, measurements=self.measurements + 1)

    def to_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)

    def effective_rows(self, rows: int) -> float:
        """How many rows' independent answers the averages are worth, of `rows` that there are.

        Example:
            >>> one = torch.ones(32)
            >>> record = HeldOutRecord()
            >>> for _ in range(20):
            ...     record = record.with_rows(slope=one, information=one, gain=one, loss=one)
            >>> round(record.effective_rows(256)), record.effective_rows(64), HeldOutRecord().effective_rows(256)
            (96, 64.0, 0.0)
        """
        return min(self.weight**2 / self.inverse_rows, float(rows)) if self.inverse_rows else 0.0

    def log_temperature(self, rows: int) -> tuple[float, float]:
        """log T̂ and its standard error for `rows` held-out rows; (0, 0) before the first measurement.

        Both count the rows that the averages are worth (`effective_rows`).

        Example:
            >>> HeldOutRecord().log_temperature(rows=100)
            (0.0, 0.0)
        """
        if self.weight == 0:
            return 0.0, 0.0
        mean, square, information = (x / self.weight for x in (self.slope, self.slope_square, self.information))
        n = self.effective_rows(rows)
        total = n * information + PRIOR_INFORMATION
        return n * mean / total, math.sqrt(n * max(square - mean**2, 0.0)) / total

    def remaining_temperature(self, rows: int) -> float:
        """T that λ has left to do at the end: that of log T̂ beyond one standard error; 1 within it.

        λ cannot sharpen a model that is under-confident by itself: at its upper bound the noise is gone. At most e or
        at least 1/e: from far off, one scoring step goes too far.

        Example:
            >>> one = torch.ones(4)
            >>> record = HeldOutRecord().with_rows(slope=-one, information=one, gain=one, loss=one)
            >>> record.remaining_temperature(rows=4) == math.exp(-0.5), HeldOutRecord().remaining_temperature(rows=4)
            (True, 1.0)
        """
        log_temperature, error = self.log_temperature(rows)
        return math.exp(min(max(beyond(log_temperature, error), -LARGEST_MOVE), LARGEST_MOVE))

    def sampling_gain(self, rows: int) -> tuple[float, float]:
        """By how many nats a row averaging over draws lowers the NLL below the mean's, and its standard error."""
        if self.weight == 0:
            return 0.0, 0.0
        mean, square = self.gain / self.weight, self.gain_square / self.weight
        return mean, math.sqrt(max(square - mean**2, 0.0) / self.effective_rows(rows))


def beyond(value: float, error: float) -> float:
    """What of a value lies beyond one standard error from 0.

    Example:
        >>> beyond(0.5, 0.2), beyond(-0.1, 0.2)
        (0.3, -0.0)
    """
    return math.copysign(max(abs(value) - error, 0.0), value)


def steered_ess(ess: float, start: float, log_temperature: float, error: float) -> float:
    """λ after one measurement.

    Args:
        ess: the present λ.
        start: λ_0.
        log_temperature: log T̂, > 0 where predictions are over-confident.
        error: its standard error.

    Example:
        >>> steered_ess(100.0, 100.0, log_temperature=0.1, error=0.2)           # could be chance
        100.0
        >>> round(steered_ess(100.0, 100.0, log_temperature=0.9, error=0.2), 1)     # too confident: more noise
        36.8
    """
    excess = beyond(log_temperature, error)
    ratio = math.log(ess / start) - min(max(GAIN * excess, -LARGEST_MOVE), LARGEST_MOVE)
    if excess == 0 and ratio > 0:
        ratio *= RETURN
    low, high = BOUNDS
    return start * min(max(math.exp(ratio), low), high)
