"""Running averages over the held-out rows, and what they say of log T and of the gain by sampling.

The equations are those of `ivon.ess_control`.
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

ERRORS = 2.0
"""Standard errors of log T̂ that could be chance."""
PRIOR_INFORMATION = 4.0
"""Precision of the prior on log T."""
LARGEST_MOVE = 1.0
"""Bound on a single move of log λ, and on log T."""
DECAY = 0.5
"""What is left of the running averages after a measurement."""


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
            >>> import torch
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
        means = {"weight": 1.0, **dict(zip(new, torch.stack([*new.values()]).mean(1).tolist(), strict=True))}
        if not all(map(math.isfinite, means.values())):  # a model that has diverged says nothing about λ
            return self.without_rows()
        averaged = {name: DECAY * getattr(self, name) + (1 - DECAY) * value for name, value in means.items()}
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
            >>> import torch
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
            >>> import torch
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
    {"mean_slope", "mean_slope_square", "mean_information", "gain_slope", "gain_mean_slope", "slope_mean_slope"}
)


def beyond(value: float, error: float) -> float:
    """What of a value lies beyond an error from 0.

    Example:
        >>> beyond(0.5, 0.2), beyond(-0.1, 0.2)
        (0.3, -0.0)
    """
    return math.copysign(max(abs(value) - error, 0.0), value)
