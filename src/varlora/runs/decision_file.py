"""What `decision.json` holds, and how its parts are read back; an infinite threshold is null in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from varlora.metrics import AccuracyThreshold, CoverageThreshold, SetThreshold
from varlora.metrics.bands import Band
from varlora.metrics.costs import Costs
from varlora.metrics.recalibration import Recalibration, Temperatures
from varlora.metrics.venn_abers import ClassTable, VennAbers

Threshold = CoverageThreshold | AccuracyThreshold


class DecisionFile(TypedDict):
    """What `decision.json` must hold."""

    format_version: int
    posterior: str | None
    chosen_on: dict[str, Any]
    predicted_as: dict[str, Any]
    by: Literal["confidence", "entropy", "mutual_information"]
    threshold: dict[str, Any] | None
    sets: dict[str, Any] | None
    costs: dict[str, Any] | None
    cost_of_rules: list[dict[str, Any]]
    bands: list[dict[str, Any]]
    delta: float
    recalibration: dict[str, Any] | None
    recalibration_said: str
    reference: list[float]
    group_column: str | None
    group_rows: dict[str, int]
    group_thresholds: dict[str, dict[str, Any]]
    group_sets: dict[str, dict[str, Any]]


def threshold_to_dict(threshold: CoverageThreshold | AccuracyThreshold | SetThreshold) -> dict[str, Any]:
    held = dataclasses.asdict(threshold)
    return {**held, "value": held["value"] if math.isfinite(held["value"]) else None}


def threshold_from(held: Mapping[str, Any]) -> Threshold:
    kind: Any = CoverageThreshold if "coverage" in held else AccuracyThreshold
    threshold: Threshold = kind(**{**held, "value": _number(held["value"], -math.inf)})
    return threshold


def sets_from(held: Mapping[str, Any]) -> SetThreshold:
    return SetThreshold(**{**held, "value": _number(held["value"], math.inf)})


def costs_from(held: Mapping[str, Any]) -> Costs:
    abstain = held["abstain"]
    return Costs(wrong=tuple(map(tuple, held["wrong"])), abstain=None if abstain is None else tuple(abstain))


def band_from(held: Mapping[str, Any], *, last: bool) -> Band:
    return Band(**{**held, "cut": _number(held["cut"], -math.inf if last else math.inf)})


def recalibration_from(held: Mapping[str, Any]) -> Recalibration:
    if "temperatures" in held:
        return Temperatures(**held["temperatures"])
    tables = held["venn_abers"]["tables"]
    return VennAbers(
        tables=tuple(ClassTable(**{name: tuple(values) for name, values in table.items()}) for table in tables),
        rows=held["venn_abers"]["rows"],
    )


def _number(value: object, missing: float) -> float:
    if value is not None and not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return missing if value is None else value
