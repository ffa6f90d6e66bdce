r"""λ of `ess="auto"`, steered so that predictions for held-out rows are calibrated.

λ weighs the fit against the posterior's entropy: a smaller one gives wider noise, hence flatter predictions. A user who
scales the logits by a temperature T asks held-out rows for the T that minimises their NLL. Here the same rows are asked
whether T = 1 is that minimum already, and λ is moved until it is. For the average p(y) = (1/S) Σ_s softmax(f_s)_y over
S draws of the weights, with w_s ∝ softmax(f_s)_y and p_s = softmax(f_s), one row contributes to the derivatives of
L(b) = −log (1/S) Σ_s softmax(b f_s)_y at b = 1/T = 1

    slope           dL/db  = Σ_s w_s (E_p_s[f_s] − f_s,y)             (> 0: over-confident)
    information     I      = (1/S) Σ_s Var_p_s[f_s]                    (Fisher information of log T)

so that over n held-out rows one scoring step estimates the temperature that is missing, with its standard error:

    log T̂ = n mean(slope) / (n I + 4),        s.e. = √(V + 4) / (n I + 4),        V = n max(var(slope), I)

(4: a prior of sd 1/2 on log T; with no row log T̂ is 0 ± 1/2. I is the variance that slopes of a calibrated model have,
and the least that is believed: a few rows that happen to agree are no certainty. For V = n I the error is the sd of the
posterior of log T, 1/√(n I + 4).)

**Ten draws.** Predictions average ten draws in five opposite pairs, and an average of fewer is surer than it. K pairs
are asked, here two. They are independent of each other, so that to first order in 1/K an expectation over K pairs is
a + b/K; I does not depend on K. Slope and loss at five pairs come from those at K and at one pair (the mean of K),

    slope = slope_K + (1/5 − 1/K) / (1 − 1/K) · (slope_1 − slope_K)        = 1.6 slope_2 − 0.6 slope_1,

row by row, so that the spread of the rows is that of the extrapolation.

The law of control, at every measurement but one after which no step is left to train:

    z = sign(log T̂) · max(|log T̂| − 2 s.e., 0),        log λ ← log λ − clip(2 z, ±1),        λ within [1/10, 100] · λ_0

with λ_0 = 100 N. Within two such errors nothing moves, and what lies beyond grows from 0 with the number of rows: few
steer nothing, and no number of them is a threshold. While λ > λ_0 and nothing is wrong, λ returns a tenth of the way
(in logarithms) to λ_0. The means are running averages, half old and half new, over batches of the held-out rows in
turn; with weight w_k on measurement k of n_k rows, their effective number of rows is

    n = (Σ_k w_k)² / Σ_k (w_k² / n_k),        but never more than there are rows

(192 after many measurements of 64). The gain, 2: the noise acts with delay, and a unit of log λ moves log T by less
than a half.

**False alarms.** The same rows are asked again and again, and λ adds up what they say. Of trainings whose predictions
are exactly calibrated throughout, and whose λ nothing calls back, at most 5 % may see it leave [1/2, 2] λ_0 at any time
(`FALSE_ALARMS`); benchmarks/false_alarms.py measures 0 to 3 %, for 5 to 256 rows (docs/auto.md).

**What is left.** When training ends, log T̂ beyond two standard errors is the logit temperature of averages of ten
draws, and, from the slopes and the information at the mean of the posterior, another one is the mean's.

It is no minimisation of the held-out NLL over λ: the fixed point is a first-order condition in the one direction, the
confidence, in which λ mainly acts. Source: our choice (docs/auto.md); temperature scaling arXiv 1706.04599.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PREDICTED_DRAWS = 10
"""Draws that predictions average, in opposite pairs (`varlora.prediction_setup.SAMPLES`)."""
FALSE_ALARMS = 0.05
"""Share of trainings in which chance may move λ by more than a factor of two, at most: what is measured, and tested."""
ERRORS = 2.0
"""Standard errors of log T̂ that could be chance."""
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


def told_by(at_mean: Tensor, draws: Tensor) -> dict[str, Tensor]:
    """What P answers say of the mean, and of an average of ten draws in five opposite pairs; see the module.

    Args:
        at_mean: (3, P), the `moments` at the mean.
        draws: (K, 2, 3, P), those of K >= 2 opposite pairs of draws.

    Returns:
        what `HeldOutRecord.with_rows` takes: slope, information, gain, loss, mean_slope, mean_information, each (P,).

    Example:
        >>> at_mean = moments(torch.tensor([[3.0, 0.0]]), torch.tensor([1]))
        >>> found = told_by(at_mean, at_mean.expand(2, 2, 3, 1))              # draws without noise are the mean
        >>> round(found["slope"].item(), 2), round(found["mean_slope"].item(), 2), found["gain"].item()
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


@dataclass(frozen=True, kw_only=True)
class HeldOutRecord:
    """Running averages over the held-out rows; plain numbers, which a checkpoint of the optimizer holds.

    Attributes:
        measurements: how many times held-out rows were predicted.
        weight: sum of the averages' weights; 0 before the first measurement.
        inverse_rows: sum of the squared weights, each divided by the number of rows it weighs.
        slope: mean of the rows' slopes for ten draws, times `weight`.
        slope_square: of their squares.
        information: of the rows' information.
        mean_slope: of their slopes at the mean of the posterior.
        mean_slope_square: of their squares.
        mean_information: of their information.
        gain: of log p averaged over ten draws − log p at the mean, both at T = 1.
        gain_square: of its square.
        gain_slope: of its product with the slope.
        gain_mean_slope: of its product with the slope at the mean.
        slope_mean_slope: of the product of the two slopes.
        loss: of the NLL averaged over ten draws.
    """

    measurements: int = 0
    weight: float = 0.0
    inverse_rows: float = 0.0
    slope: float = 0.0
    slope_square: float = 0.0
    information: float = 0.0
    mean_slope: float = 0.0
    mean_slope_square: float = 0.0
    mean_information: float = 0.0
    gain: float = 0.0
    gain_square: float = 0.0
    gain_slope: float = 0.0
    gain_mean_slope: float = 0.0
    slope_mean_slope: float = 0.0
    loss: float = 0.0

    def with_rows(
        self,
        slope: Tensor,
        information: Tensor,
        gain: Tensor,
        loss: Tensor,
        mean_slope: Tensor,
        mean_information: Tensor,
    ) -> HeldOutRecord:
        """The averages with one more measurement, of n rows: what `told_by` returns, each (n,).

        Example:
            >>> one = torch.ones(12)
            >>> rows = dict.fromkeys(["slope", "information", "gain", "loss", "mean_slope", "mean_information"], one)
            >>> HeldOutRecord().with_rows(**rows).log_temperature(rows=12)[0]
            0.75
        """
        new = {
            "slope": slope,
            "slope_square": slope.square(),
            "information": information,
            "mean_slope": mean_slope,
            "mean_slope_square": mean_slope.square(),
            "mean_information": mean_information,
            "gain": gain,
            "gain_square": gain.square(),
            "gain_slope": gain * slope,
            "gain_mean_slope": gain * mean_slope,
            "slope_mean_slope": slope * mean_slope,
            "loss": loss,
        }
        found = {"weight": 1.0, **{name: value.mean().item() for name, value in new.items()}}
        if not all(map(math.isfinite, found.values())):  # a model that has diverged says nothing about λ
            return self.without_rows()
        averaged = {name: DECAY * getattr(self, name) + (1 - DECAY) * value for name, value in found.items()}
        inverse_rows = DECAY**2 * self.inverse_rows + (1 - DECAY) ** 2 / len(slope)
        return HeldOutRecord(measurements=self.measurements + 1, inverse_rows=inverse_rows, **averaged)

    def without_rows(self) -> HeldOutRecord:
        """The averages after a measurement that found nothing."""
        return replace(self, measurements=self.measurements + 1)

    def to_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> HeldOutRecord:
        """What `to_dict` gave.

        A record of varlora 0.2 or older, which averaged four draws and kept nothing of the mean, cannot be
        gone on with: a warning says so, and of its averages nothing is kept.

        Raises:
            ValueError: it is no record, or one of a newer version.

        Example:
            >>> HeldOutRecord.from_dict(HeldOutRecord(measurements=3).to_dict()).measurements
            3
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(plain.keys() - known):
            raise ValueError(
                f"the record of the rows that steered ess has {', '.join(unknown)}, which this version of varlora does "
                f"not know; it reads {', '.join(sorted(known))}. Use the version that wrote the checkpoint."
            )
        if missing := known - plain.keys():
            if not missing <= _SINCE_TEN_DRAWS:
                raise ValueError(
                    f"the record of the rows that steered ess has no {', '.join(sorted(missing))}. The checkpoint is "
                    "damaged; take an earlier one."
                )
            logger.warning(
                "the checkpoint's record of held-out rows is of an older version, which averaged 4 draws and kept "
                "nothing of the mean: it is left out, and the rows are asked anew."
            )
            return cls(measurements=int(plain["measurements"]))
        return cls(**plain)

    def effective_rows(self, rows: int) -> float:
        """How many rows' independent answers the averages are worth, of `rows` that there are.

        Example:
            >>> one = torch.ones(64)
            >>> rows = dict.fromkeys(["slope", "information", "gain", "loss", "mean_slope", "mean_information"], one)
            >>> record = HeldOutRecord()
            >>> for _ in range(20):
            ...     record = record.with_rows(**rows)
            >>> round(record.effective_rows(256)), record.effective_rows(64), HeldOutRecord().effective_rows(256)
            (192, 64.0, 0.0)
        """
        return min(self.weight**2 / self.inverse_rows, float(rows)) if self.inverse_rows else 0.0

    def log_temperature(self, rows: int, *, of: Literal["samples", "mean"] = "samples") -> tuple[float, float]:
        """log T̂ and its standard error for `rows` held-out rows; those of the prior before the first measurement.

        Both count the rows that the averages are worth (`effective_rows`).

        Args:
            rows: how many there are.
            of: whose predictions: averages of ten draws, or those at the mean.

        Example:
            >>> HeldOutRecord().log_temperature(rows=100)
            (0.0, 0.5)
        """
        if self.weight == 0:
            return 0.0, 1 / math.sqrt(PRIOR_INFORMATION)
        sums = (
            (self.slope, self.slope_square, self.information)
            if of == "samples"
            else (self.mean_slope, self.mean_slope_square, self.mean_information)
        )
        slope, square, information = (x / self.weight for x in sums)
        n = self.effective_rows(rows)
        total = n * information + PRIOR_INFORMATION
        variance = n * max(square - slope**2, information)
        return n * slope / total, math.sqrt(variance + PRIOR_INFORMATION) / total

    def beyond_chance(self, rows: int, *, of: Literal["samples", "mean"] = "samples") -> float:
        """What of log T̂ lies beyond two standard errors.

        Args:
            rows: how many there are.
            of: whose predictions: averages of ten draws, or those at the mean.

        Example:
            >>> one = torch.ones(200)
            >>> rows = dict.fromkeys(["slope", "information", "gain", "loss", "mean_slope", "mean_information"], one)
            >>> record = HeldOutRecord().with_rows(**rows)
            >>> round(record.beyond_chance(rows=200), 2), record.beyond_chance(rows=5)
            (0.84, 0.0)
        """
        log_temperature, error = self.log_temperature(rows, of=of)
        return beyond(log_temperature, ERRORS * error)

    def remaining_temperature(self, rows: int, *, of: Literal["samples", "mean"] = "samples") -> float:
        """T that λ has left to do at the end: that of log T̂ beyond two standard errors; 1 within them.

        λ cannot sharpen a model that is under-confident by itself: at its upper bound the noise is gone. At most e or
        at least 1/e: from far off, one scoring step goes too far.

        Args:
            rows: how many there are.
            of: whose predictions: averages of ten draws, or those at the mean.

        Example:
            >>> HeldOutRecord().remaining_temperature(rows=4)
            1.0
        """
        return math.exp(min(max(self.beyond_chance(rows, of=of), -LARGEST_MOVE), LARGEST_MOVE))

    def sampling_gain(self, rows: int) -> tuple[float, float]:
        """By how many nats a row averaging over ten draws lowers the NLL below the mean's, both at T = 1; its error."""
        if self.weight == 0:
            return 0.0, 0.0
        mean, square = self.gain / self.weight, self.gain_square / self.weight
        return mean, math.sqrt(max(square - mean**2, 0.0) / self.effective_rows(rows))

    def sampling_gain_at_temperature(self, rows: int) -> tuple[float, float]:
        """The same with both at the T that is left for them (`remaining_temperature`), to second order in log T.

        With t_s and t_m the two log T, the gain is gain + t_s slope − t_m slope_m − ½ t_s² I + ½ t_m² I_m. The error is
        that of its part that is linear in the rows' labels.
        """
        if self.weight == 0:
            return 0.0, 0.0
        t_s, t_m = (math.log(self.remaining_temperature(rows, of=of)) for of in ("samples", "mean"))
        w = self.weight
        linear = (self.gain + t_s * self.slope - t_m * self.mean_slope) / w
        square = (
            self.gain_square
            + t_s**2 * self.slope_square
            + t_m**2 * self.mean_slope_square
            + 2 * t_s * self.gain_slope
            - 2 * t_m * self.gain_mean_slope
            - 2 * t_s * t_m * self.slope_mean_slope
        ) / w
        curved = (t_s**2 * self.information - t_m**2 * self.mean_information) / (2 * w)
        return linear - curved, math.sqrt(max(square - linear**2, 0.0) / self.effective_rows(rows))


_SINCE_TEN_DRAWS = frozenset(
    {
        "mean_slope",
        "mean_slope_square",
        "mean_information",
        "gain_slope",
        "gain_mean_slope",
        "slope_mean_slope",
    }
)


def beyond(value: float, error: float) -> float:
    """What of a value lies beyond an error from 0.

    Example:
        >>> beyond(0.5, 0.2), beyond(-0.1, 0.2)
        (0.3, -0.0)
    """
    return math.copysign(max(abs(value) - error, 0.0), value)


def steered_ess(ess: float, start: float, excess: float) -> float:
    """λ after one measurement.

    Args:
        ess: the present λ.
        start: λ_0.
        excess: of log T̂ (`HeldOutRecord.beyond_chance`), > 0 where predictions are over-confident.

    Example:
        >>> steered_ess(100.0, 100.0, excess=0.0)
        100.0
        >>> round(steered_ess(100.0, 100.0, excess=0.7), 1)     # too confident: more noise
        36.8
    """
    ratio = math.log(ess / start) - min(max(GAIN * excess, -LARGEST_MOVE), LARGEST_MOVE)
    if excess == 0 and ratio > 0:
        ratio *= RETURN
    low, high = BOUNDS
    return start * min(max(math.exp(ratio), low), high)
