"""The pruned fraction is chosen on validation rows, and not at any price."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from varlora.posterior import DiagonalGaussian, PredictionConfig
from varlora.prediction import Prediction
from varlora.runs import selection

Q = DiagonalGaussian(mean={"w": torch.arange(1.0, 11.0)}, precision={"w": torch.ones(10)})


def predictions(monkeypatch: pytest.MonkeyPatch, cost: Any, rows: int) -> None:
    """Predictions whose NLL rises by cost(entries pruned) in every row, by a little more in every other one."""

    def predict_split(setting: Any, q: DiagonalGaussian, split: str, config: PredictionConfig) -> Prediction:
        assert (split, config) == ("validation", PredictionConfig(samples=2))
        pruned = int((q.mean["w"] == 0).sum())
        spread = torch.arange(rows) % 2 * 0.01 * pruned
        right = -(0.1 + cost(pruned) + spread).double()
        log_probs = torch.stack([right, torch.log1p(-right.exp())], dim=1)[:, None]
        return Prediction(log_probs=log_probs, labels=torch.tensor([0] * rows))

    monkeypatch.setattr(selection, "predict_split", predict_split)


@pytest.mark.parametrize(("free", "expected"), [(0, 0.0), (3, 0.3), (10, 0.9)])
def test_the_largest_fraction_that_costs_nothing(monkeypatch: pytest.MonkeyPatch, free: int, expected: float) -> None:
    predictions(monkeypatch, lambda pruned: torch.tensor(-0.01 * pruned if pruned <= free else 1.0), rows=20)
    setting: Any = SimpleNamespace()
    assert math.isclose(selection.largest_free_fraction(setting, Q, samples=2), expected)


def test_one_row_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions(monkeypatch, lambda pruned: torch.tensor(0.0), rows=1)
    setting: Any = SimpleNamespace()
    with pytest.raises(ValueError, match="at least 2"):
        selection.largest_free_fraction(setting, Q, samples=2)
