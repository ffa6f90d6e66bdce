"""A way to predict with a finished run: how it is written in a plan, and when two ways are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from typing_extensions import Self

from varlora.nearest import nearest
from varlora.ops import Criterion, Scope

VariantMode = Literal["mean", "samples", "linearised"]
LogitTemperature = Literal["none", "validation"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to predict with a posterior as training left it.

    It is pruned first, then tempered, then predicted with, and the logits are divided at the end. What is chosen, is
    chosen on validation rows; `tune` leaves all of it to them.

    Args:
        mode: "mean" (the posterior's point), "samples" (its draws) or "linearised" (draws of the logits of the model
            linearised at the point).
        samples: S, number of draws of "samples"; None: the run's own.
        temperature: τ, scales the covariance; 0 is the mean.
        prune: fraction of the entries that is set to zero; "validation": the largest that costs no more than a standard
            error of validation NLL.
        prune_by: which entries go first; "random" is decided by the run's seed.
        prune_scope: rank over all tensors, or within each.
        logit_temperature: "validation" divides the logits by a T that is fitted on validation rows, over whatever T the
            run has; "none" adds nothing.
        tune: predict as `varlora tune` would choose for the run; no other field goes with it.

    Raises:
        ValueError: a value is out of its range, or two do not go together.

    Example:
        >>> Variant(mode="samples", temperature=0, samples=4).key == Variant(mode="mean").key
        True
    """

    mode: VariantMode = "samples"
    samples: int | None = None
    temperature: float = 1.0
    prune: float | Literal["validation"] = 0.0
    prune_by: Criterion = "snr"
    prune_scope: Scope = "global"
    logit_temperature: LogitTemperature = "none"
    tune: bool = False

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; {nearest(str(getattr(self, name)), get_args(kind))}"
                )
        whole = self.samples is None or (_is_number(self.samples) and self.samples == int(self.samples) >= 1)
        if not whole:
            raise ValueError(f"samples is {self.samples!r}; it must be a whole number from 1 (the mean is mode: mean).")
        if not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise ValueError(f"temperature is {self.temperature!r}; it must be a finite number, at least 0 (the mean).")
        if self.prune != "validation" and not (_is_number(self.prune) and 0 <= self.prune < 1):
            raise ValueError(f"prune is {self.prune!r}; it must be a fraction from 0 to below 1, or 'validation'.")
        if self.mode == "mean" and self.temperature not in (0, 1):
            raise ValueError(
                f"temperature is {self.temperature:g}, which changes nothing at the mean; use mode: samples."
            )
        if self.mode != "samples" and self.samples is not None:
            why = "has no draws" if self.mode == "mean" else "always takes 100 draws of the logits, which cost nothing"
            raise ValueError(f"samples is {self.samples}, but mode {self.mode!r} {why}; leave samples out.")
        if not isinstance(self.tune, bool):
            raise ValueError(f"tune is {self.tune!r}; it must be true or false.")
        if self.tune:
            _check_alone([f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default])
        object.__setattr__(self, "temperature", float(self.temperature))
        if self.prune != "validation":
            object.__setattr__(self, "prune", float(self.prune))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """A variant as a plan writes it.

        Args:
            values: the fields that are not the defaults.
            where: what to call it in an error, e.g. "methods.ivon.rows['IVON, mean']".

        Raises:
            ValueError: a field is unknown, or does not fit.

        Example:
            >>> Variant.from_dict({"mode": "mean", "prune": 0.1}, where="rows").prune
            0.1
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} is {values!r}; write a mapping such as {{mode: samples, samples: 10}}.")
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"{where} has {unknown[0]!r}; {nearest(str(unknown[0]), known)}")
        try:
            if values.get("tune") is True:
                _check_alone(list(values))  # also what is at its default: it is not the default that is chosen
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON and YAML have it: `tune` alone, or every other field."""
        if self.tune:
            return {"tune": True}
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "tune"}

    @property
    def plain(self) -> Self:
        """The same without what has no effect: the mean is the mean, and nothing pruned is pruned by nothing."""
        changes: dict[str, Any] = {}
        if self.temperature == 0:
            changes |= {"mode": "mean", "samples": None, "temperature": 1.0}
        if self.prune == 0:
            changes |= {"prune_by": "snr", "prune_scope": "global"}
        return dataclasses.replace(self, **changes)

    @property
    def key(self) -> str:
        """A hash of what it is: equal for variants that predict the same from one run."""
        return hashlib.sha256(json.dumps(self.plain.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def made_as(self) -> Self:
        """The variant whose predictions are made and kept for this one.

        Fewer draws are the first of more, and a T is fitted to what is kept, so neither makes another one. A fraction
        that validation rows choose is chosen at a number of draws.
        """
        draws = self.samples if self.prune == "validation" else None
        return dataclasses.replace(
            self.plain, samples=draws if self.plain.mode == "samples" else None, logit_temperature="none"
        )


_CHOICES: Mapping[str, Any] = {
    "mode": VariantMode,
    "prune_by": Criterion,
    "prune_scope": Scope,
    "logit_temperature": LogitTemperature,
}


def _check_alone(names: Sequence[str]) -> None:
    """Refuses fields beside `tune`."""
    if others := [name for name in names if name != "tune"]:
        raise ValueError(
            f"{', '.join(others)} beside tune: true, which has validation rows choose how to predict. Give the one or "
            "the other."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
