"""EMA: evaluation and posterior are at the average of AdamW's path, also with early stopping and after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from small_runs import STEPS, config, save_model
from varlora.adapters import trained_tensors
from varlora.methods.ema import Ema
from varlora.runs.run import train
from varlora.runs.setting import load_setting


class RecordPath(TrainerCallback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.path: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        self.path.append({key: p.detach().clone() for key, p in trained_tensors(model).items()})


def path_and_posterior(folder: Path, model: str, **options: Any) -> tuple[list[dict[str, torch.Tensor]], Any, Any]:
    setting = load_setting(config(folder, model, method="ema", **options))
    recorded = RecordPath()
    result = train(setting, Ema(learning_rate=0.02, ema_decay=0.6), checkpoints=folder / "c", callbacks=[recorded])
    return recorded.path, result, setting


def average_of(path: list[dict[str, torch.Tensor]], key: str, decay: float) -> torch.Tensor:
    average = path[0][key]
    for t, weights in enumerate(path, start=1):
        keep = min(decay, (1 + t) / (10 + t))
        average = keep * average + (1 - keep) * weights[key]
    return average


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), layers=1)


def test_the_posterior_is_the_average_of_the_path(tmp_path: Path, model: str) -> None:
    path, result, setting = path_and_posterior(tmp_path, model)
    assert len(path) == STEPS
    for key, mean in result.posterior.mean.items():
        torch.testing.assert_close(mean, average_of(path, key, 0.6))
        assert torch.equal(trained_tensors(setting.model)[key], mean)
    assert any(not torch.equal(result.posterior.mean[key], path[-1][key]) for key in path[-1])


def test_early_stopping_keeps_the_average_of_the_checkpoint_with_the_lowest_loss_of_averages(
    tmp_path: Path, model: str
) -> None:
    path, result, _ = path_and_posterior(tmp_path, model, early_stopping=True, eval_steps=5)
    losses = {entry["step"]: entry["eval_loss"] for entry in result.log if "eval_loss" in entry}
    best = min(losses, key=lambda step: losses[step])
    for key, mean in result.posterior.mean.items():
        torch.testing.assert_close(mean, average_of(path[:best], key, 0.6))


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"ema_decay is {decay}"):
        Ema(ema_decay=decay)
