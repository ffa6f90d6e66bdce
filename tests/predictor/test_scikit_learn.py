"""scikit-learn and MAPIE take a predictor as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mapie.classification import SplitConformalClassifier
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, get_scorer, log_loss
from sklearn.utils.validation import check_is_fitted

from small_runs import herds
from varlora import Predictor
from varlora.metrics import evaluate, prediction_sets, threshold_for_sets

HELD_OUT, NEW = herds(40), herds(30, offset=70)
TEXTS, LABELS = [row["text"] for row in HELD_OUT], [row["label"] for row in HELD_OUT]
NEW_TEXTS, NEW_LABELS = [row["text"] for row in NEW], [row["label"] for row in NEW]


def test_it_is_a_fitted_classifier(predictor: Predictor) -> None:
    check_is_fitted(predictor)
    assert is_classifier(predictor)
    with pytest.raises(ValueError, match=r"is trained already.*FrozenEstimator.*prefit=True"):
        predictor.fit(TEXTS, LABELS)


def test_metrics_of_scikit_learn_are_ours(predictor: Predictor) -> None:
    prediction = predictor.prediction(HELD_OUT, labelled=True)
    ours = evaluate(prediction.log_probs, prediction.labels)
    probabilities = predictor.predict_proba(TEXTS)
    assert log_loss(LABELS, probabilities, labels=predictor.classes_) == pytest.approx(ours["nll"])
    assert accuracy_score(LABELS, predictor.predict(TEXTS)) == pytest.approx(ours["accuracy"])
    assert get_scorer("neg_log_loss")(predictor, TEXTS, LABELS) == pytest.approx(-ours["nll"])
    calibration_curve(np.array(LABELS) == "positive", probabilities[:, 1])


def test_scikit_learn_calibrates_it(predictor: Predictor) -> None:
    calibrated = CalibratedClassifierCV(FrozenEstimator(predictor), method="temperature", ensemble=False)
    calibrated.fit(TEXTS, LABELS)
    probabilities = calibrated.predict_proba(NEW_TEXTS)
    assert calibrated.classes_.tolist() == list(predictor.classes)
    assert (probabilities.argmax(1) == predictor.predict_proba(NEW_TEXTS).argmax(1)).all()
    held_out = [log_loss(LABELS, one.predict_proba(TEXTS)) for one in (calibrated, predictor)]
    assert held_out[0] < held_out[1] - 1e-4, "the temperature must have changed something"


def test_mapies_sets_are_ours(predictor: Predictor) -> None:
    mapie = SplitConformalClassifier(predictor, confidence_level=0.5, conformity_score="lac", prefit=True)
    mapie.conformalize(np.array(TEXTS), np.array(LABELS))
    predicted, theirs = mapie.predict_set(np.array(NEW_TEXTS))

    held_out = predictor.prediction(HELD_OUT, labelled=True)
    threshold = threshold_for_sets(held_out.log_probs, held_out.labels, "0.5", score="lac")
    ours = prediction_sets(predictor.prediction(NEW).log_probs, threshold)
    assert predicted.tolist() == predictor.predict(NEW_TEXTS).tolist()
    assert torch.equal(torch.tensor(theirs[:, :, 0]), ours)
    assert set(ours.sum(1).tolist()) != {1}, "sets must differ from the likeliest class for this to show anything"
