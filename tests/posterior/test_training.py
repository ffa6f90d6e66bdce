"""What the rows that steered λ leave in a posterior."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from varlora.optim.ess_control import HeldOutRecord
from varlora.posterior.training import held_out_diagnostics, remaining_temperature

READOUT = {"kind": "answer_tokens", "token_ids": [4, 5]}


def group(slope: float, readout: Any = READOUT, rows: int = 64) -> dict[str, Any]:
    values = torch.full((32,), slope) + torch.linspace(-0.1, 0.1, 32)
    one = torch.ones(32)
    record = HeldOutRecord().with_rows(values, one, gain=0.2 * one, loss=one)
    return {
        "held_out": record.to_dict(),
        "held_out_rows": rows,
        "held_out_source": "validation",
        "held_out_readout": readout,
        "auto_ess": 100.0,
    }


@pytest.mark.parametrize(("slope", "below"), [(-0.5, True), (0.5, False)])
def test_what_lies_beyond_one_standard_error_is_the_temperature_of_samples(slope: float, below: bool) -> None:
    found = remaining_temperature(group(slope), READOUT)
    assert found is not None
    assert (found["samples"] < 1) == below
    record = HeldOutRecord(**group(slope)["held_out"])
    assert found["samples"] == record.remaining_temperature(64)


def test_within_one_standard_error_there_is_none() -> None:
    assert remaining_temperature(group(0.0), READOUT) is None


@pytest.mark.parametrize("readout", [None, {"kind": "class_head"}, {**READOUT, "token_ids": [4, 6]}])
def test_rows_that_were_read_otherwise_say_nothing_of_predictions(readout: Any) -> None:
    assert remaining_temperature(group(-0.5), readout) is None
    assert remaining_temperature(group(-0.5, readout=readout), READOUT) is None


def test_the_errors_are_those_of_the_rows_in_the_averages() -> None:
    record = HeldOutRecord(**group(0.0)["held_out"])
    found = held_out_diagnostics(group(0.0, rows=256))
    assert found is not None
    assert (found["sampling_gain"], found["sampling_gain_error"]) == record.sampling_gain(32)
    assert (found["log_temperature"], found["log_temperature_error"]) == record.log_temperature(32)
    assert held_out_diagnostics({}) is None
