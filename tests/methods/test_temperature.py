"""The temperatures in a posterior's meta, and what decided them."""

from __future__ import annotations

import logging
from dataclasses import asdict

import pytest
import torch

from varlora.methods import with_temperatures
from varlora.methods.options import AdamWOptions, IvonOptions, MethodOptions
from varlora.metrics import fit_temperature
from varlora.posterior import PointMass
from varlora.posterior.meta import PosteriorMeta
from varlora.prediction.prediction import Prediction

Q = PointMass(mean={"w": torch.ones(1)}, meta=PosteriorMeta(diagnostics={"steps": 3}))


def prediction(right: int, wrong: int) -> Prediction:
    logits = torch.tensor([[[2.0, 0.0]]], dtype=torch.float64).repeat(right + wrong, 1, 1)
    return Prediction(log_probs=logits.log_softmax(-1), labels=torch.tensor([0] * right + [1] * wrong))


def test_each_mode_has_its_temperature_and_the_rows_that_decided_it(caplog: pytest.LogCaptureFixture) -> None:
    many, few = prediction(150, 50), prediction(6, 0)
    with caplog.at_level(logging.INFO):
        q = with_temperatures(Q, {"mean": many, "samples": few}, of="runs/a")
    expected = fit_temperature(many.log_probs, many.labels)
    assert q.meta.logit_temperatures == {"mean": expected.value, "samples": 1.0}
    assert expected.value > 1.5
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["steps"] == 3
    found = q.meta.diagnostics["logit_temperature"]
    assert found["mean"] == asdict(expected)
    assert (found["samples"]["rows"], found["samples"]["likeliest"], found["samples"]["value"]) == (6, 0.01, 1.0)
    assert caplog.messages == [
        f"runs/a, mode mean: {expected.sentence}",
        "runs/a, mode samples: T = 1 from 6 rows (kept: 0.9 standard errors from calibrated, 2.0 are asked for; the "
        "likeliest is 0.01)",
    ]


def test_rows_without_a_label_are_not_counted() -> None:
    unlabelled = Prediction(log_probs=prediction(8, 2).log_probs, labels=torch.tensor([0] * 6 + [1, -1, -1, -1]))
    q = with_temperatures(Q, {"mean": unlabelled})
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["logit_temperature"]["mean"]["rows"] == 7


def test_a_divided_prediction_is_refused() -> None:
    divided = Prediction(log_probs=prediction(5, 5).log_probs, labels=torch.tensor([0] * 10), logit_temperature=2.0)
    with pytest.raises(ValueError, match=r"divided by 2\.0 already"):
        with_temperatures(Q, {"mean": divided})


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        (IvonOptions(), True),
        (IvonOptions(held_out="validation"), True),
        (IvonOptions(held_out="train"), False),
        (IvonOptions(held_out="none"), False),
        (IvonOptions(ess=1000.0), False),
        (IvonOptions(recipe="cong2024"), False),
        (IvonOptions(recipe="cong2025"), False),
        (AdamWOptions(), False),
    ],
)
def test_who_fits_one_unasked(options: MethodOptions, fits: bool) -> None:
    assert options.scales_temperature is fits
