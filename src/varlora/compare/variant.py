"""A way to predict as a plan asks for it: a `PredictionConfig`, and what of it validation rows are to choose."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from typing_extensions import Self

from varlora.io.nearest import nearest
from varlora.posterior import PredictionConfig

Choice = Literal["prune", "logit_temperature", "tune"]
VALIDATION = "validation"
"""What a plan writes in place of a number that validation rows are to choose."""
NONE = "none"
"""What a plan writes for a posterior's own T."""
FIELDS = tuple(f.name for f in dataclasses.fields(PredictionConfig))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to predict with a finished run.

    Args:
        config: the way; where it has no number of draws, it is the run's.
        chosen: what validation rows choose: "prune" (the largest fraction that costs no more than a standard error of
            validation NLL), "logit_temperature" (a T, in place of the run's own), or all of it, as `varlora tune`
            does ("tune").

    Raises:
        ValueError: two of them do not go together.

    Example:
        >>> Variant.from_dict({"prune": "validation", "samples": 4}).chosen
        frozenset({'prune'})
    """

    config: PredictionConfig = field(default_factory=PredictionConfig)
    chosen: frozenset[Choice] = frozenset()

    def __post_init__(self) -> None:
        given = [name for name in FIELDS if getattr(self.config, name) != getattr(PredictionConfig(), name)]
        if "tune" in self.chosen:
            _check_alone([*given, *sorted(self.chosen - {"tune"})])
        if both := [name for name in given if name in self.chosen]:
            raise ValueError(f"{both[0]} is given, and validation rows are to choose it; give the one or the other.")
        if self.config.mode == "linearised" and self.config.samples is not None:
            raise ValueError(
                f"samples is {self.config.samples}, but mode 'linearised' always takes 100 draws of the logits, which "
                "cost nothing; leave samples out."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """A variant as a plan writes it.

        Args:
            values: the fields of a `PredictionConfig` that are not the defaults. `prune` and `logit_temperature` may be
                "validation", and the latter "none" (the run's own); `tune: true` stands alone.
            where: what to call it in an error, e.g. "methods.ivon.rows['IVON, mean']".

        Raises:
            ValueError: a field is unknown, or does not fit.

        Example:
            >>> Variant.from_dict({"mode": "mean", "prune": 0.1}).config.prune
            0.1
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} is {values!r}; write a mapping such as {{mode: samples, samples: 10}}.")
        known = [*FIELDS, "tune"]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"{where} has {unknown[0]!r}; {nearest(str(unknown[0]), known)}")
        try:
            return cls._parse(values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}" if where else str(error)) from error

    @classmethod
    def _parse(cls, values: Mapping[str, Any]) -> Self:
        given, chosen = dict(values), set[Choice]()
        if not isinstance(tune := given.pop("tune", False), bool):
            raise ValueError(f"tune is {tune!r}; it must be true or false.")
        if tune:
            _check_alone(list(given))  # also what is at its default: it is not the default that is chosen
            return cls(chosen=frozenset({"tune"}))
        if given.get("logit_temperature") == NONE:
            del given["logit_temperature"]
        if given.get("prune") == VALIDATION:
            chosen.add("prune")
        if given.get("logit_temperature") == VALIDATION:
            chosen.add("logit_temperature")
        for name, allowed in (
            ("prune", "a fraction from 0 to below 1"),
            ("logit_temperature", "a positive number, none"),
        ):
            if name not in chosen and isinstance(value := given.get(name), str):
                raise ValueError(f"{name} is {value!r}; it must be {allowed}, or {VALIDATION}.")
        config = PredictionConfig(**{name: value for name, value in given.items() if name not in chosen})
        return cls(config=config, chosen=frozenset(chosen))

    def to_dict(self) -> dict[str, Any]:
        """As JSON and YAML have it: `tune` alone, or every other field."""
        if "tune" in self.chosen:
            return {"tune": True}
        values = self.config.to_dict()
        if self.config.logit_temperature is None:
            values["logit_temperature"] = NONE
        return {**values, **dict.fromkeys(sorted(self.chosen), VALIDATION)}

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are not the defaults, as a plan writes them."""
        defaults = Variant().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != defaults.get(name)}

    def describe(self) -> str:
        """As a plan writes it, with its mode."""
        values = self.given if "tune" in self.chosen else {"mode": self.config.mode, **self.given}
        return f"{{{', '.join(f'{name}: {_spell(value)}' for name, value in values.items())}}}"

    @property
    def canonical(self) -> Self:
        """The same without what has no effect (`PredictionConfig.canonical`)."""
        config = self.config.canonical
        if "prune" in self.chosen:
            config = replace(config, prune_by=self.config.prune_by, prune_scope=self.config.prune_scope)
        return replace(self, config=config)

    @property
    def key(self) -> str:
        """A hash of what it is: equal for variants that predict the same from one run."""
        return hashlib.sha256(json.dumps(self.canonical.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def stored_as(self) -> Self:
        """The variant whose predictions are made and kept for this one.

        Fewer draws are the first of more, and a T divides what is kept, so neither makes another one. A fraction that
        validation rows choose is chosen at a number of draws.
        """
        plain = self.canonical
        samples = plain.config.samples if "prune" in self.chosen else None
        config = replace(plain.config, samples=samples, logit_temperature=None)
        return replace(plain, config=config, chosen=self.chosen - {"logit_temperature"})


def _check_alone(names: list[str]) -> None:
    """Refuses fields beside `tune`."""
    if names:
        raise ValueError(
            f"{', '.join(names)} beside tune: true, which has validation rows choose how to predict. Give the one or "
            "the other."
        )


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
