"""One way to predict with a posterior: mode, draws, τ, pruning and T. What is tuned, planned, asked for and cached."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from typing_extensions import Self

from varlora.io.nearest import nearest

Mode = Literal["mean", "samples", "linearised"]
Criterion = Literal["snr", "variance", "magnitude", "random"]
Scope = Literal["global", "tensor"]


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """A way to predict with a posterior as training left it.

    The posterior is pruned, then its covariance is scaled, then it is predicted with, and the logits are divided at the
    end (`varlora.prediction.prediction_setup.apply_config`). It compares and hashes by its values, and so is its own
    key.

    Args:
        mode: "mean" (the posterior's point), "samples" (its draws) or "linearised" (draws of the logits of the model
            linearised at the point).
        samples: S, number of draws of the weights; None: the caller's or the run's own.
        temperature: τ, scales the covariance; 0 is the mean.
        prune: fraction of the entries that is set to zero.
        prune_by: which entries go first; "random" is decided by the run's seed.
        prune_scope: rank over all tensors, or within each.
        logit_temperature: T, divides the logits; None takes the posterior's own for the mode.

    Raises:
        ValueError: a value is out of its range, or two do not go together.

    Example:
        >>> PredictionConfig(samples=4, temperature=0).canonical == PredictionConfig(mode="mean")
        True
    """

    mode: Mode = "samples"
    samples: int | None = None
    temperature: float = 1.0
    prune: float = 0.0
    prune_by: Criterion = "snr"
    prune_scope: Scope = "global"
    logit_temperature: float | None = None

    def __post_init__(self) -> None:
        for name, kind in (("mode", Mode), ("prune_by", Criterion), ("prune_scope", Scope)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in get_args(kind):
                raise ValueError(f"{name} is {value!r}; {nearest(str(value), get_args(kind))}")
        samples, temperature, prune, divisor = self.samples, self.temperature, self.prune, self.logit_temperature
        if samples is not None and not (_is_number(samples) and samples == int(samples) >= 1):
            raise ValueError(f"samples is {samples!r}; it must be a whole number from 1 (the mean is mode: mean).")
        if not (_is_number(temperature) and temperature >= 0):
            raise ValueError(f"temperature is {temperature!r}; it must be a finite number, at least 0 (the mean).")
        if not (_is_number(prune) and 0 <= prune < 1):
            raise ValueError(f"prune is {prune!r}; it must be a fraction from 0 to below 1.")
        if divisor is not None and not (_is_number(divisor) and divisor > 0):
            raise ValueError(f"logit_temperature is {divisor!r}; it must be a positive number.")
        if self.mode == "mean" and temperature not in (0, 1):
            raise ValueError(f"temperature is {temperature:g}, which changes nothing at the mean; use mode: samples.")
        if self.mode == "mean" and samples is not None:
            raise ValueError(f"samples is {samples}, but mode 'mean' has no draws; leave samples out.")
        object.__setattr__(self, "samples", None if samples is None else int(samples))
        object.__setattr__(self, "temperature", float(temperature))
        object.__setattr__(self, "prune", float(prune))
        object.__setattr__(self, "logit_temperature", None if divisor is None else float(divisor))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            ValueError: a field is missing or unknown, or does not fit.

        Example:
            >>> PredictionConfig.from_dict(PredictionConfig(samples=4).to_dict()).samples
            4
        """
        known = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(values, Mapping):
            raise ValueError(f"a way to predict is a mapping of {', '.join(known)}, not {values!r}.")
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"unknown {unknown[0]!r}; {nearest(str(unknown[0]), known)}")
        if missing := [name for name in known if name not in values]:
            raise ValueError(f"{', '.join(missing)} missing; a way to predict has {', '.join(known)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: every field."""
        return dataclasses.asdict(self)

    @property
    def canonical(self) -> Self:
        """The same without what has no effect: the mean is the mean, and nothing pruned is pruned by nothing."""
        changes: dict[str, Any] = {}
        if self.temperature == 0:
            changes |= {"mode": "mean", "samples": None, "temperature": 1.0}
        if self.prune == 0:
            changes |= {"prune_by": "snr", "prune_scope": "global"}
        return dataclasses.replace(self, **changes)

    @property
    def stored_as(self) -> Self:
        """The way whose stored predictions hold this one's: fewer draws are the first of more, and a T divides them."""
        return dataclasses.replace(self.canonical, samples=None, logit_temperature=None)

    def draws(self, default: int) -> int:
        """S: 0 at the mean, and `default` where the config has no number of its own.

        Example:
            >>> [config.draws(10) for config in (PredictionConfig(), PredictionConfig(samples=4, temperature=0))]
            [10, 0]
        """
        return 0 if self.canonical.mode == "mean" else default if self.samples is None else self.samples

    def at(self, mode: Mode) -> Self:
        """The same in another mode, whose T is the posterior's own.

        Example:
            >>> tuned = PredictionConfig(samples=4, temperature=0.5, prune=0.1, logit_temperature=2)
            >>> tuned.at("mean") == PredictionConfig(mode="mean", prune=0.1)
            True
        """
        if mode == self.canonical.mode:
            return self
        other = dataclasses.replace(self, mode="samples", logit_temperature=None)
        if mode == "mean":
            other = dataclasses.replace(other, samples=None, temperature=1.0)
        return dataclasses.replace(other, mode=mode)

    def describe(self) -> str:
        """In words.

        Example:
            >>> PredictionConfig(temperature=0.5, samples=16, logit_temperature=1.25).describe()
            'τ = 0.5, 16 draws, logits divided by 1.25'
        """
        words = []
        if self.canonical.mode == "mean":
            words.append("the mean")
        else:
            words.append(f"τ = {self.temperature:g}")
            if self.mode == "samples" and self.samples is not None:
                words.append("1 draw" if self.samples == 1 else f"{self.samples} draws")
        if self.logit_temperature is not None and self.logit_temperature != 1:
            words.append(f"logits divided by {self.logit_temperature:.4g}")
        if self.prune > 0:
            words.append(f"{100 * self.prune:g} % pruned by {self.prune_by}")
        return ", ".join(words)


def upgrade_tuned(values: object) -> dict[str, Any]:
    """What was tuned, as format 2 of posterior.json wrote it, in the fields of `PredictionConfig`.

    Raises:
        ValueError: it is not that.

    Example:
        >>> tuned = {"temperature": 0.0, "samples": 0, "mode": "mean", "logit_temperature": 1.5}
        >>> PredictionConfig.from_dict(upgrade_tuned(tuned)) == PredictionConfig(
        ...     mode="mean", temperature=0, logit_temperature=1.5
        ... )
        True
    """
    needed = {"temperature", "samples", "mode", "logit_temperature"}
    given = dict(values) if isinstance(values, dict) else {}
    pruned = given.pop("pruned", {"fraction": 0.0, "by": "snr"})
    if not isinstance(pruned, dict) or pruned.keys() != {"fraction", "by"} or given.keys() != needed:
        raise ValueError(
            f"{values!r} must give {', '.join(sorted(needed))} and may give 'pruned' (fraction, by). Write it with "
            "`varlora tune`."
        )
    samples = None if given["samples"] == 0 and type(given["samples"]) is int else given["samples"]
    return {**given, "samples": samples, "prune": pruned["fraction"], "prune_by": pruned["by"], "prune_scope": "global"}


def _is_number(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    largest = sys.float_info.max
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -largest <= value <= largest
