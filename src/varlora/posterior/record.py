"""What a training's record says in its posterior's meta: how N was counted, and what the held-out rows said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from varlora.posterior.held_out_record import HeldOutRecord
from varlora.posterior.training_record import TrainingRecord


def record_diagnostics(record: TrainingRecord) -> dict[str, Any]:
    """The record's part of `PosteriorMeta.diagnostics`: plain JSON.

    Example:
        >>> record_diagnostics({"counted": {"examples": 40}})
        {'counted': {'examples': 40}}
    """
    diagnostics: dict[str, Any] = {}
    if counted := record.get("counted"):
        diagnostics["counted"] = dict(counted)
    if held_out := held_out_diagnostics(record):
        diagnostics["held_out"] = held_out
    return diagnostics


def counted_examples(diagnostics: Mapping[str, Any]) -> int | None:
    """N as it was counted for λ (`varlora.training.examples`); None where λ and h0 were given.

    Example:
        >>> counted_examples({"counted": {"examples": 40, "rows": 9, "mean_over": "tokens"}})
        40
    """
    counted: Mapping[str, Any] = diagnostics.get("counted") or {}
    return counted.get("examples")


def held_out_diagnostics(record: TrainingRecord) -> dict[str, Any] | None:
    """What the rows that steered λ said at the end (`varlora.ivon.ess_control`); None where none were asked for.

    Args:
        record: of the training.

    Returns:
        source and number of rows, and measurements; why, where none steered λ. Where they were measured: how many rows'
        answers the averages are worth (fewer, where not all were asked); log T̂ of averages of ten draws and of the
        mean, the gain of sampling over the mean in nats, both at T = 1 and each at the T that is left for it, each with
        its standard error; the rows' NLL averaged over ten draws.
    """
    why = {"why": record["held_out_why"]} if "held_out_why" in record else {}
    if "held_out" not in record:
        return {"source": None, "rows": 0, "measurements": 0, **why} if why else None
    averages, rows = HeldOutRecord.from_dict(record["held_out"]), int(record["held_out_rows"])
    source = {"source": record["held_out_source"], "rows": rows, "measurements": averages.measurements, **why}
    if averages.weight == 0:
        return {**source, "measurements": 0}
    log_temperature, its_error = averages.log_temperature(rows)
    of_mean, its_own = averages.log_temperature(rows, of="mean")
    gain, gain_error = averages.sampling_gain(rows)
    at_temperature, error_at = averages.sampling_gain_at_temperature(rows)
    return {
        **source,
        "effective_rows": averages.effective_rows(rows),
        "ess_start": record.get("auto_ess"),
        "log_temperature": log_temperature,
        "log_temperature_error": its_error,
        "mean_log_temperature": of_mean,
        "mean_log_temperature_error": its_own,
        "sampling_gain": gain,
        "sampling_gain_error": gain_error,
        "sampling_gain_at_temperature": at_temperature,
        "sampling_gain_at_temperature_error": error_at,
        "nll": averages.loss / averages.weight,
        "remaining_temperature": averages.remaining_temperature(rows),
        "mean_remaining_temperature": averages.remaining_temperature(rows, of="mean"),
    }


def remaining_temperatures(record: TrainingRecord, readout: Mapping[str, Any] | None) -> dict[str, float]:
    """The logit temperatures that the rows which steered λ ask for; empty if all are 1, or if they were read otherwise.

    Args:
        record: of the training.
        readout: how predictions will be read, `Readout.to_dict()`.

    Returns:
        T of averages of ten draws ("samples") and of predictions at the mean ("mean").

    Example:
        >>> remaining_temperatures({}, readout=None)
        {}
    """
    if readout is None or "held_out" not in record:
        return {}
    if json.dumps(record.get("held_out_readout"), sort_keys=True) != json.dumps(readout, sort_keys=True):
        return {}
    averages, rows = HeldOutRecord.from_dict(record["held_out"]), int(record["held_out_rows"])
    by_mode = {"samples": averages.remaining_temperature(rows), "mean": averages.remaining_temperature(rows, of="mean")}
    return by_mode if set(by_mode.values()) != {1.0} else {}
