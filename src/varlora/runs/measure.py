"""A run's predictions, measured: one dict of numbers per split and mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varlora.metrics import ScopeRows, evaluate, evaluate_rows
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.runs.folder import CompletionScores

IN_SCOPE = "test"


def measure(
    predictions: Mapping[str, Mapping[str, Prediction | CompletionScores]],
    generations: Mapping[str, Mapping[str, Generations]] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics by split and mode.

    A split whose rows all lack a class (out of scope) is measured by how well uncertainty tells its rows from those
    of "test": AUROC and the false-positive rate at 95 % detection, by entropy and by mutual information.

    Args:
        predictions: by split and mode.
        generations: texts by split and mode, with their right answers; what is measured of them goes beside the rest.

    Returns:
        `{split: {mode: {metric: value}}}`.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]], dtype=torch.float64).log()
        >>> measured = measure({"test": {"mean": Prediction(log_probs=log_probs, labels=torch.tensor([0, 1]))}})
        >>> measured["test"]["mean"]["accuracy"]
        1.0
    """
    measured = {
        split: {
            mode: _measure(prediction, predictions.get(IN_SCOPE, {}).get(mode)) for mode, prediction in modes.items()
        }
        for split, modes in predictions.items()
    }
    for split, texts in (generations or {}).items():
        for mode, written in texts.items():
            measured[split][mode] |= written.metrics()
    return measured


def _measure(prediction: Prediction | CompletionScores, in_scope: Any) -> dict[str, float]:
    if isinstance(prediction, CompletionScores):
        return prediction.metrics()
    if bool((prediction.labels >= 0).all()):
        return evaluate(prediction.log_probs, prediction.labels)
    if bool((prediction.labels < 0).all()):
        if not isinstance(in_scope, Prediction):
            return {}
        return evaluate_rows(ScopeRows(in_scope.log_probs, prediction.log_probs))
    known = prediction.labels >= 0
    return evaluate(prediction.log_probs[known], prediction.labels[known])
