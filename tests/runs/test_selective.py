"""Thresholds applied to predictions, and what the validation rows have decided before."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from varlora.metrics import CannotGuaranteeError, evaluate
from varlora.posterior import PointMass, PosteriorMeta, PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.runs.config import RunConfig
from varlora.runs.folder import RunFolder
from varlora.runs.selective import Wanted, also_used_for, select


def predicted(rows: int, *, seed: int = 0, draws: int = 3, unknown: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, draws, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1).mean(1), 1, generator=generator).squeeze(-1)
    labels[:unknown] = -1
    return Prediction(log_probs=logits.log_softmax(-1), labels=labels)


def test_what_is_answered_is_measured_on_labelled_rows() -> None:
    selection = select(Wanted(coverage=Fraction("0.6")), predicted(100))
    found = selection.measure(predicted(80, seed=1, unknown=30))["answered"]
    known = dataclasses.replace(
        (both := predicted(80, seed=1, unknown=30)), log_probs=both.log_probs[30:], labels=both.labels[30:]
    )
    assert found == selection.measure(known)["answered"]
    assert found["rows"] == 50
    assert found["accuracy_of_all"] == pytest.approx(evaluate(known.log_probs, known.labels)["accuracy"])
    answered = selection.answered(known)
    assert answered is not None
    assert found["answered"] == int(answered.sum())


def test_rows_without_labels_are_counted() -> None:
    selection = select(Wanted(coverage=Fraction("0.6"), sets=Fraction("0.9")), predicted(100))
    found = selection.measure(predicted(40, seed=1, unknown=40))
    assert found["answered"].keys() == {"rows", "answered", "share_answered"}
    assert found["sets"].keys() == {"mean_size", "share_empty", "share_singleton"}


def test_nothing_is_chosen_that_was_not_asked_for() -> None:
    rows = predicted(50)
    only_sets = select(Wanted(sets=Fraction("0.9")), rows)
    assert only_sets.answered(rows) is None
    assert only_sets.measure(rows).keys() == {"sets"}
    only_answers = select(Wanted(accuracy=Fraction("0.1")), rows)
    assert only_answers.sets_of(rows) is None
    assert only_answers.measure(rows).keys() == {"answered"}
    with pytest.raises(CannotGuaranteeError):
        select(Wanted(accuracy=Fraction("0.99")), rows)


def test_the_measure_of_sureness_decides() -> None:
    rows = predicted(100)
    answered = [
        select(Wanted(coverage=Fraction("0.5"), by=by), rows).answered(rows)  # type: ignore[arg-type]
        for by in ("confidence", "entropy", "mutual_information")
    ]
    assert all(one is not None and int(one.sum()) == 51 for one in answered)
    assert not torch.equal(answered[0], answered[2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "meta", "said"),
    [
        ({}, {}, ()),
        ({}, {"held_out": {"source": "validation", "measurements": 4}}, ("λ was steered",)),
        ({}, {"held_out": {"source": "validation", "measurements": 0}}, ()),
        ({}, {"held_out": {"source": "train", "measurements": 4}}, ()),
        ({"early_stopping": True}, {}, ("training was stopped early",)),
        ({"temperature_scaling": True}, {}, ("a temperature of the logits was fitted",)),
        ({"method": "temperature"}, {}, ("a temperature of the logits was fitted",)),
        ({"method": "laplace", "prior_choice": "validation"}, {}, ("the prior was chosen",)),
    ],
)
def test_what_the_rows_have_decided_before(
    settings: dict[str, Any], meta: dict[str, Any], said: tuple[str, ...]
) -> None:
    config = RunConfig.from_dict(
        {"model_name_or_path": "m", "train_file": "t", "output_dir": "o", "method": "adamw", **settings}
    )
    q = PointMass(mean={"w": torch.ones(1)}, meta=PosteriorMeta(diagnostics=meta))
    assert also_used_for(RunFolder(path=Path("o"), config=config, posterior=q, metrics={}, facts={})) == said
    tuned = PosteriorMeta(tuned=PredictionConfig(mode="mean", logit_temperature=2.0))
    q = PointMass(mean=q.mean, meta=dataclasses.replace(tuned, diagnostics=meta))
    again = also_used_for(RunFolder(path=Path("o"), config=config, posterior=q, metrics={}, facts={}))
    assert again == (*said, "`varlora tune` chose how to predict")
