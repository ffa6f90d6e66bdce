"""AdamW's own options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from small_runs import config, save_model, write_rows
from varlora.methods import METHODS
from varlora.methods.adamw import AdamW
from varlora.runs.run import train
from varlora.runs.setting import load_setting
from varlora.training.adapter_trainer import smoothed


def test_smoothed_labels_give_the_cross_entropy_with_the_smoothed_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    logits[1, 3] = logits[4, 0] = -torch.inf  # choices that these rows do not have
    labels = torch.tensor([0, 2, 3, 1, 1])
    total = F.cross_entropy(logits, labels, reduction="sum")
    expected = torch.tensor(0.0, dtype=torch.float64)
    for row, label in zip(logits, labels.tolist(), strict=True):
        exist = torch.isfinite(row)
        target = exist.double() / exist.sum() * 0.3
        target[label] += 0.7
        expected -= (target[exist] * row.log_softmax(-1)[exist]).sum()
    torch.testing.assert_close(smoothed(total, logits, 0.3), expected)


def test_smoothing_acts_in_training_and_not_on_the_validation_loss(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", layers=1)
    losses = {}
    for share in (0.0, 0.5):
        setting = load_setting(config(tmp_path / str(share), model, method="adamw", early_stopping=True, eval_steps=25))
        result = train(setting, AdamW(learning_rate=0.02, label_smoothing=share), checkpoints=tmp_path / f"c{share}")
        losses[share] = (
            next(e["loss"] for e in reversed(result.log) if "loss" in e),
            next(e["eval_loss"] for e in reversed(result.log) if "eval_loss" in e),
        )
    floor = F.cross_entropy(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.75, 0.25]])).item()
    assert losses[0.0][0] < 0.3 < floor <= losses[0.5][0] + 1e-3
    assert losses[0.5][1] < floor  # that of the labels themselves: -log .75 at best


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing is {share}; it must be in \[0, 1\)"):
        AdamW(label_smoothing=share)


@pytest.mark.parametrize("method", ["adamw", "ema", "swag"])
def test_labels_of_completions_cannot_be_smoothed(method: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", layers=1)
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a fine", "completion": " film"}] * 8)
    files = {"train_file": rows, "validation_file": None, "test_file": None}
    setting = load_setting(config(tmp_path, model, method=method, **files))
    with pytest.raises(ValueError, match="spreads a label over its choices, and completions have none"):
        train(setting, METHODS[method](label_smoothing=0.1), checkpoints=tmp_path / "c")
