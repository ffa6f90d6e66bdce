"""What a server says of its models: what they answer, from what, and what abstaining did on the validation rows."""

from __future__ import annotations

from typing import Any

from varlora.metrics import confidence_and_correct
from varlora.posterior import PredictionConfig
from varlora.predictor.predictor import Predictor
from varlora.serve.language_model import LanguageModel
from varlora.tasks.task import VALIDATION

_STEPS = 100


def model_facts(predictor: Predictor | None, language: LanguageModel | None) -> dict[str, Any]:
    """What /v1/models says of a model, beside what OpenAI's API does.

    Args:
        predictor: what classifies; None where nothing does.
        language: what writes; None where nothing does.
    """
    facts: dict[str, Any] = {"classifies": predictor is not None, "writes": language is not None}
    if predictor is not None:
        facts |= {
            "kind": predictor.kind,
            "classes": list(predictor.classes),
            "num_draws": predictor.num_draws,
            "abstention": abstention(predictor),
        }
    if language is not None:
        facts |= {"samples": language.samples, "chat": bool(language.tokenizer.chat_template)}
    return facts


def abstention(predictor: Predictor) -> dict[str, Any] | None:
    """What answering only the surer of the run's validation rows did; None where training left no such predictions.

    Those of another τ, of more draws or pruned are others; another T divides those that are there.

    Returns:
        `rows`, and for 101 thresholds of the probability from 0 to 1 the share of these rows that is `answered` and
        the share of those that is `right` (None where no row is).
    """
    way = predictor.config.stored_as
    stored = predictor.run.stored_prediction(VALIDATION, way.mode) if way == PredictionConfig(mode=way.mode) else None
    if stored is None or stored.num_draws != predictor.num_draws:
        return None
    stored = stored.at_temperature(predictor.logit_temperature)
    confidence, correct = confidence_and_correct(stored.probs, stored.labels)
    answered, right = [], []
    for step in range(_STEPS + 1):
        kept = confidence >= step / _STEPS
        answered.append(float(kept.double().mean()))
        right.append(float(correct[kept].double().mean()) if bool(kept.any()) else None)
    return {"rows": len(confidence), "answered": answered, "right": right}
