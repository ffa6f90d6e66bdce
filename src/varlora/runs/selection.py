"""Choices made on validation rows, never on the rows that are reported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varlora.metrics import largest_free, mean_log_probs
from varlora.ops import prune
from varlora.posterior import Posterior
from varlora.prediction import Prediction
from varlora.prediction_setup import choose_config
from varlora.runs.run import predict_split
from varlora.runs.setting import Setting

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def largest_free_fraction(
    setting: Setting, q: Posterior, *, samples: int, fractions: Sequence[float] = FRACTIONS
) -> float:
    """The largest fraction that can be pruned by SNR for less validation NLL than is worth a word.

    The cost is the paired difference from the unpruned posterior over the validation rows, with the same draws, and its
    standard errors on top (`varlora.metrics.is_free`). Fractions are tried in rising order until one may cost more.

    Args:
        setting: a setting with a "validation" split.
        q: the posterior.
        samples: draws per prediction, in the posterior's own mode.
        fractions: what to try, in rising order.

    Returns:
        The fraction; 0.0 if even the smallest may cost more, as on few rows it may.

    Raises:
        ValueError: fewer than two validation rows have a label.
    """
    reference = _losses(setting, q, samples)
    if len(reference) < 2:
        raise ValueError(
            f"{len(reference)} labelled validation row(s) cannot tell what pruning costs; give at least 2."
        )
    return largest_free(((f, _losses(setting, prune(q, f), samples)) for f in fractions), reference)


def _losses(setting: Setting, q: Posterior, samples: int) -> Tensor:
    """Negative log-likelihood of every labelled validation row, (N,)."""
    prediction = predict_split(setting, q, "validation", choose_config(q, samples))
    assert isinstance(prediction, Prediction)
    known = prediction.labels >= 0
    averaged, labels = mean_log_probs(prediction.log_probs)[known], prediction.labels[known]
    return -averaged[torch.arange(len(labels)), labels]
