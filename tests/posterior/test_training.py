"""What the rows that steered λ leave in a posterior."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from varlora.posterior.held_out_record import HeldOutRecord
from varlora.posterior.meta import PosteriorMeta
from varlora.posterior.record import held_out_diagnostics, remaining_temperatures

READOUT = {"kind": "answer_tokens", "token_ids": [4, 5]}


def group(slope: float, readout: Any = READOUT, rows: int = 64) -> dict[str, Any]:
    values = torch.full((32,), slope) + torch.linspace(-0.1, 0.1, 32)
    one = torch.ones(32)
    record = HeldOutRecord().with_rows(
        slope=values, information=one, gain=0.2 * one, loss=one, mean_slope=2 * values, mean_information=one
    )
    return {
        "held_out": record.to_dict(),
        "held_out_rows": rows,
        "held_out_source": "validation",
        "held_out_readout": readout,
        "auto_ess": 100.0,
    }


@pytest.mark.parametrize(("slope", "below"), [(-0.5, True), (0.5, False)])
def test_what_lies_beyond_two_standard_errors_is_the_temperature_of_samples_and_of_the_mean(
    slope: float, below: bool
) -> None:
    found = remaining_temperatures(group(slope), READOUT)
    assert (found["samples"] < 1, found["mean"] < found["samples"]) == (below, below)
    record = HeldOutRecord(**group(slope)["held_out"])
    assert found["samples"] == record.remaining_temperature(64)
    assert found["mean"] == record.remaining_temperature(64, of="mean")
    meta = PosteriorMeta(logit_temperatures=remaining_temperatures(group(slope), READOUT))
    assert {mode: meta.logit_temperature_of(mode) for mode in found} == found


def test_a_temperature_of_the_mean_alone_is_not_that_of_samples() -> None:
    meta = PosteriorMeta(logit_temperatures=remaining_temperatures(group(0.25), READOUT))
    assert meta.logit_temperature_of("samples") == 1.0
    assert meta.logit_temperature_of("mean") > 1.0


def test_within_two_standard_errors_there_is_none() -> None:
    assert remaining_temperatures(group(0.1), READOUT) == {}


def test_why_nothing_steers_is_told() -> None:
    assert held_out_diagnostics({"held_out_why": "too few"}) == {
        "source": None,
        "rows": 0,
        "measurements": 0,
        "why": "too few",
    }
    empty = {**group(0.0), "held_out": HeldOutRecord().to_dict(), "held_out_why": "too short"}
    assert held_out_diagnostics(empty) == {
        "source": "validation",
        "rows": 64,
        "measurements": 0,
        "why": "too short",
    }


@pytest.mark.parametrize("readout", [None, {"kind": "class_head"}, {**READOUT, "token_ids": [4, 6]}])
def test_rows_that_were_read_otherwise_say_nothing_of_predictions(readout: Any) -> None:
    assert remaining_temperatures(group(-0.5), readout) == {}
    assert remaining_temperatures(group(-0.5, readout=readout), READOUT) == {}


def test_the_errors_are_those_of_the_rows_in_the_averages() -> None:
    record = HeldOutRecord(**group(0.0)["held_out"])
    found = held_out_diagnostics(group(0.0, rows=256))
    assert (found["sampling_gain"], found["sampling_gain_error"]) == record.sampling_gain(32)
    assert (found["log_temperature"], found["log_temperature_error"]) == record.log_temperature(32)
    of_mean = (found["mean_log_temperature"], found["mean_log_temperature_error"])
    assert of_mean == record.log_temperature(32, of="mean")
    assert held_out_diagnostics({}) is None
