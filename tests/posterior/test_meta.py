"""What a posterior's meta may say of tuning."""

from __future__ import annotations

from typing import Any

import pytest

from varlora.posterior import PosteriorMeta

TUNED = {"temperature": 0.5, "samples": 8, "mode": "samples", "logit_temperature": 1.5}


@pytest.mark.parametrize(
    "tuned", [TUNED, {**TUNED, "temperature": 0, "samples": 0}, {**TUNED, "pruned": {"fraction": 0.1, "by": "snr"}}]
)
def test_what_was_tuned_is_held(tuned: dict[str, Any]) -> None:
    assert PosteriorMeta(tuned=tuned).tuned == tuned


@pytest.mark.parametrize(
    "tuned",
    [
        {},
        {**TUNED, "temperature": -1},
        {**TUNED, "temperature": True},
        {**TUNED, "samples": 2.5},
        {**TUNED, "samples": -1},
        {**TUNED, "mode": None},
        {**TUNED, "logit_temperature": 0},
        {**TUNED, "draws": 3},
        {**TUNED, "pruned": 0.1},
        {**TUNED, "pruned": {"fraction": 0.1}},
    ],
)
def test_what_could_not_be_applied_is_refused(tuned: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"meta\.tuned is .*`varlora tune`"):
        PosteriorMeta(tuned=tuned)
