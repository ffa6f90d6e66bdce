"""Weights that are fitted to given probabilities."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from varlora.readout.readout import ClassHead
from varlora.runs.soft_targets import SoftTargetOptions, cross_entropy, entropy_of, fit_soft_targets
from varlora.tasks import Collator

ROWS = 40


class Lookup(nn.Module):
    """Logits of a row's one token, with a dropout that must not act."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 3))
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.dropout(self.table)[input_ids[:, 0]])


def examples() -> list[dict[str, Any]]:
    return [
        {"id": str(n), "input_ids": [n % 4], "labels": -100, "num_choices": 2 if n % 4 == 3 else 3} for n in range(ROWS)
    ]


def targets() -> Tensor:
    table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0], [0.25, 0.75, 0.0]], dtype=torch.float64)
    return table[torch.arange(ROWS) % 4]


def fitted(model: nn.Module, start: Tensor, **options: Any) -> Any:
    return fit_soft_targets(
        model,
        {"table": start},
        examples(),
        targets(),
        readout=ClassHead(classes=("a", "b", "c")),
        collate=Collator(pad_token_id=0, num_classes=3),
        options=SoftTargetOptions(**options),
    )


def test_the_targets_are_reached_from_the_start_at_the_best_rate() -> None:
    model = Lookup().train()
    before = torch.get_rng_state()

    fit = fitted(model, torch.zeros(4, 3), learning_rates=(1e-5, 0.3), num_train_epochs=30)

    assert (fit.learning_rate, fit.rows, fit.kept) == (0.3, 32, 8)
    assert fit.start > 0.1 > 0.01 > fit.divergence >= 0
    probs = fit.weights["table"].softmax(-1)
    torch.testing.assert_close(probs[:2].double(), targets()[:2], atol=0.05, rtol=0)
    assert torch.equal(model.table, fit.weights["table"])
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    again = fitted(Lookup(), torch.zeros(4, 3), learning_rates=(1e-5, 0.3), num_train_epochs=30)
    assert torch.equal(again.weights["table"], fit.weights["table"])


def test_the_start_is_kept_where_nothing_is_closer() -> None:
    start = targets()[:4].clamp(min=1e-9).log().float()
    fit = fitted(Lookup(), start, learning_rates=(5.0,), num_train_epochs=1)

    assert (fit.learning_rate, fit.epoch, fit.divergence) == (None, 0, fit.start)
    assert torch.equal(fit.weights["table"], start)


def test_the_loss_is_the_cross_entropy_with_soft_targets() -> None:
    logits, soft = torch.randn(5, 3), torch.rand(5, 3).softmax(-1)
    expected = nn.functional.cross_entropy(logits, soft, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, soft), expected)
    logits = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    cross_entropy(logits, torch.tensor([[0.5, 0.5, 0.0]])).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert entropy_of(torch.tensor([0.0, 1.0])).item() == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rates": ()}, "one or more positive"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0"),
        ({"kept": 1.0}, "a fraction between 0 and 1"),
        ({"kept": 0.001}, "too few to keep 0.001 of them out"),
    ],
)
def test_what_does_not_do_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fitted(Lookup(), torch.zeros(4, 3), **options)
