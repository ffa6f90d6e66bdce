"""A predictor goes by the decision that its folder keeps."""

from __future__ import annotations

import dataclasses
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from small_runs import herds
from varlora import Predictor
from varlora.metrics.costs import Costs
from varlora.prediction.prediction_setup import choose_config
from varlora.runs.calibration import calibrate
from varlora.runs.choose_decision import Wanted, choose_decision
from varlora.runs.decision import Decision
from varlora.runs.folder import read_run

ROWS = herds(20, offset=60)


@pytest.fixture(scope="module")
def decided(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a threshold and sets, for its draws."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("decided") / "run"))
    run = read_run(folder)
    calibration = calibrate(run, choose_config(run.posterior, 6))
    wanted = Wanted(coverage=Fraction("0.5"), sets=Fraction("0.9"), set_score="aps")
    choose_decision(wanted, calibration).save(folder)
    return folder


def test_rows_that_are_not_sure_enough_say_why(decided: Path) -> None:
    predictor = Predictor.from_pretrained(decided, samples=6)
    stored = Decision.load(decided)
    assert predictor.decision == stored
    assert stored is not None
    assert stored.threshold is not None
    expected = stored.decide(predictor.prediction(ROWS))

    answers = predictor(ROWS)

    assert [answer.answered for answer in answers] == expected.answered.tolist()
    assert {answer.answered for answer in answers} == {True, False}
    assert [answer.answered for answer in answers] == [a.probability >= stored.threshold.value for a in answers]
    assert [answer.reason for answer in answers] == list(expected.reasons)
    assert all((answer.reason is None) is answer.answered for answer in answers)
    assert [answer.prediction_set for answer in answers] == [
        tuple(name for name, inside in zip(predictor.classes, row, strict=True) if inside)
        for row in expected.sets.tolist()
    ]
    assert predictor(ROWS[0]["text"]).answered == answers[0].answered


def test_by_costs_the_labels_are_those_of_the_least_cost(decided: Path) -> None:
    stored = Decision.load(decided)
    assert stored is not None
    costs = Costs(wrong=((0.0, 1e9), (1.0, 0.0)))
    decision = dataclasses.replace(stored, threshold=None, costs=costs)
    predictor = Predictor.from_pretrained(decided, samples=6, decision=decision)
    assert {answer.label for answer in predictor(ROWS)} == {"negative"} == set(predictor.predict(ROWS).tolist())
    assert set(predictor.predict_proba(ROWS).argmax(1).tolist()) == {0, 1}


def test_a_decision_for_another_way_to_predict_is_refused_before_any_row(decided: Path) -> None:
    with pytest.raises(ValueError, match=r"predicted by samples, 6 draw.*decision=None.*--undecided"):
        Predictor.from_pretrained(decided, samples=4)
    with pytest.raises(ValueError, match=r"samples is 'auto' here.*Predict with samples=6.*--undecided"):
        Predictor.from_pretrained(decided, samples="auto")
    free = Predictor.from_pretrained(decided, samples=4, decision=None)
    assert {answer.answered for answer in free(ROWS)} == {None}
    given = Predictor.from_pretrained(decided, samples=6, decision=Decision.load(decided))
    assert given(ROWS[:2])[1].answered is not None
    with pytest.raises(ValueError, match="decision is 'none'; give a Decision"):
        Predictor.from_pretrained(decided, decision="none")


def test_a_decision_for_sixteen_draws_is_not_for_at_most_sixteen(decided: Path) -> None:
    stored = Decision.load(decided)
    assert stored is not None
    most = dataclasses.replace(stored, predicted_as=dataclasses.replace(stored.predicted_as, draws=16))
    assert Predictor.from_pretrained(decided, samples=16, decision=most).decision == most
    free = Predictor.from_pretrained(decided, samples="auto", decision=None)
    with pytest.raises(ValueError, match="Predict with samples=16"):
        most.decide(free.prediction(ROWS))
    with pytest.raises(ValueError, match="Predict with samples=16"):
        Predictor.from_pretrained(decided, samples="auto", decision=most)
