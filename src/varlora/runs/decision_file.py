"""A decision as `decision.json` holds it, and back: an infinite threshold is null in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from varlora.metrics import AccuracyThreshold, CoverageThreshold
from varlora.metrics.recalibration import Recalibration, Temperatures

Threshold = CoverageThreshold | AccuracyThreshold

KINDS = ("temperatures", "venn_abers")


def to_plain(fields: Mapping[str, Any], recalibration: Recalibration | None) -> dict[str, Any]:
    """Plain JSON of a decision's fields (`dataclasses.asdict`)."""
    held = dict(fields)
    if recalibration is not None:
        held["recalibration"] = {KINDS[not isinstance(recalibration, Temperatures)]: held["recalibration"]}
    for name in ("threshold", "sets"):
        held[name] = _finite(held[name])
    for name in ("group_thresholds", "group_sets"):
        held[name] = {group: _finite(value) for group, value in held[name].items()}
    return held


def to_fields(held: Mapping[str, Any]) -> dict[str, Any]:
    """A decision's fields from plain JSON; what is not of its form is left as it is."""
    values = dict(held)
    recalibration = values.get("recalibration")
    if isinstance(recalibration, dict) and len(recalibration) == 1 and (kind := next(iter(recalibration))) in KINDS:
        values["recalibration"] = recalibration[kind]
    for one, several, infinite in (("threshold", "group_thresholds", -math.inf), ("sets", "group_sets", math.inf)):
        values[one] = _restored(values.get(one), "value", infinite)
        groups = values.get(several)
        if isinstance(groups, dict):
            values[several] = {group: _restored(value, "value", infinite) for group, value in groups.items()}
    if isinstance(bands := values.get("bands"), list):
        last = len(bands) - 1
        values["bands"] = [_restored(band, "cut", -math.inf if i == last else math.inf) for i, band in enumerate(bands)]
    return values


def _finite(threshold: Any) -> Any:
    if threshold is None or math.isfinite(threshold["value"]):
        return threshold
    return {**threshold, "value": None}


def _restored(part: Any, name: str, infinite: float) -> Any:
    if isinstance(part, dict) and name in part and part[name] is None:
        return {**part, name: infinite}
    return part
