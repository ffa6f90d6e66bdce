"""MC dropout: AdamW's training, and passes whose average tends to the expectation over masks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import TrainerCallback

from small_runs import config, save_model
from varlora.adapters import trained_tensors
from varlora.methods import AdamW
from varlora.methods.mc_dropout import McDropout
from varlora.posterior import DropoutMasks, NotAWeightSampleError, PredictionConfig
from varlora.posterior.ops import prune
from varlora.prediction.completions import predict_completions
from varlora.prediction.prediction import Prediction, predict
from varlora.readout.readout import ClassHead
from varlora.runs.predict import predict_split
from varlora.runs.run import train
from varlora.runs.setting import Setting, load_setting

RATE = 0.3


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), layers=1)


def trained(folder: Path, model: str, method: Any, rate: float = RATE) -> tuple[Setting, Any]:
    options: dict[str, Any] = {"method": "adamw", "max_steps": 8, "lora_dropout": rate}
    setting = load_setting(config(folder, model, **options))
    return setting, train(setting, method, checkpoints=folder / "checkpoints", progress=False)


@pytest.fixture(scope="module")
def masks(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Setting, Any]:
    return trained(tmp_path_factory.mktemp("masks"), model_folder, McDropout(learning_rate=0.02))


# Training --------------------------------------------------------------------------------------------------


def test_training_is_adamws_and_the_rate_is_the_adapters(
    masks: tuple[Setting, Any], model_folder: str, tmp_path: Path
) -> None:
    setting, done = masks
    _, alone = trained(tmp_path, model_folder, AdamW(learning_rate=0.02))
    q = done.posterior
    assert isinstance(q, DropoutMasks)
    assert q.rate == RATE
    assert all(torch.equal(q.point[key], t) for key, t in alone.posterior.point.items())
    assert replace(q.meta, method="adamw") == alone.posterior.meta
    assert all(torch.equal(p, q.point[key]) for key, p in trained_tensors(setting.model).items())


def test_the_trained_model_predicts_by_masks(masks: tuple[Setting, Any]) -> None:
    setting, done = masks
    found = predict_split(setting, done.posterior, "test", PredictionConfig(samples=6))
    assert isinstance(found, Prediction)
    assert (found.num_draws, found.mode, found.antithetic) == (6, "samples", False)
    assert all(not torch.allclose(found.log_probs[:, s], found.log_probs[:, s - 1]) for s in range(6))
    again = predict_split(setting, done.posterior, "test", PredictionConfig(samples=6))
    assert isinstance(again, Prediction)
    assert torch.equal(found.log_probs, again.log_probs)
    alone = predict_split(setting, done.posterior, "test", PredictionConfig(mode="mean"))
    assert isinstance(alone, Prediction)
    assert (alone.num_draws, alone.mode) == (1, "mean")


def test_pruned_by_magnitude_it_still_predicts(masks: tuple[Setting, Any]) -> None:
    setting, done = masks
    q = prune(done.posterior, 0.5, by="magnitude")
    assert isinstance(q, DropoutMasks)
    assert sum(int((t == 0).sum()) for t in q.point.values()) == sum(t.numel() for t in q.point.values()) // 2
    assert isinstance(predict_split(setting, q, "test", PredictionConfig(samples=2)), Prediction)
    with pytest.raises(NotAWeightSampleError):
        prune(done.posterior, 0.5)


def test_an_adapter_without_dropout_is_refused_before_it_is_trained(model_folder: str, tmp_path: Path) -> None:
    class Never(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError

    setting = load_setting(config(tmp_path, model_folder, method="adamw", lora_dropout=0.0))
    with pytest.raises(ValueError, match=r"needs an adapter with one dropout rate above 0, not none; set lora_dropout"):
        train(setting, McDropout(), checkpoints=tmp_path / "c", progress=False, callbacks=[Never()])


def test_completions_are_scored_by_masks(masks: tuple[Setting, Any]) -> None:
    setting, done = masks
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8]] * 3),
        "attention_mask": torch.ones(3, 4, dtype=torch.int64),
        "labels": torch.tensor([[-100, -100, 7, 8]] * 3),
    }
    scores, _ = predict_completions(setting.model, done.posterior, [batch], 5)
    assert scores.shape == (3, 5)
    assert len(scores.unique()) == 15  # the same row three times, five times over


# The average over passes, where the expectation is known ---------------------------------------------------


class Linear(nn.Module):
    """Logits W x, behind a dropout of the model's own that must stay off."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 3)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.linear(self.dropout(input_ids)))


ROWS = 500
READOUT = ClassHead(classes=("a", "b", "c"))


@pytest.fixture(scope="module")
def model() -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(Linear(), LoraConfig(r=2, target_modules=["linear"], lora_dropout=RATE, lora_alpha=2))
    with torch.no_grad():
        model.base_model.model.linear.lora_B["default"].weight.normal_()
    return model.train()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1))


def probabilities(model: PeftModel, x: Tensor, samples: int, seed: int) -> Tensor:
    q = DropoutMasks(mean={key: p.detach().clone() for key, p in trained_tensors(model).items()}, rate=RATE)
    batches = [{"input_ids": x, "labels": torch.zeros(len(x), dtype=torch.int64)}]
    return predict(model, q, batches, samples, readout=READOUT, seed=seed).probs


def expected(model: PeftModel, x: Tensor) -> Tensor:
    """The mean of the probabilities over all 2⁴ masks, each with its own probability."""
    layer = model.base_model.model.linear
    product = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().double()
    base = layer.base_layer(x).detach().double()
    mean = torch.zeros(len(x), 3, dtype=torch.float64)
    for kept in itertools.product((0, 1), repeat=4):
        weight = (1 - RATE) ** sum(kept) * RATE ** (4 - sum(kept))
        masked = x.double() * torch.tensor(kept) / (1 - RATE)
        mean += weight * (base + masked @ product.T).softmax(-1)
    return mean


def test_the_average_tends_to_the_expectation_over_masks(model: PeftModel, x: Tensor) -> None:
    mean = expected(model, x)
    error = (probabilities(model, x, 2000, seed=0) - mean).square().mean().sqrt().item()
    assert error < 0.004
    alone = probabilities(model, x, 0, seed=0)
    assert (alone - mean).square().mean().sqrt() > 5 * error, "the point is another prediction"


def test_halves_of_the_passes_agree_the_better_the_more_there_are(model: PeftModel, x: Tensor) -> None:
    gaps = []
    for samples in (25, 100, 400):
        halves = [probabilities(model, x, samples, seed=seed) for seed in (1, 2)]
        gaps.append((halves[0] - halves[1]).square().mean().sqrt().item())
    assert 1.7 < gaps[0] / gaps[1] < 2.3  # four times the passes, half the gap
    assert 1.7 < gaps[1] / gaps[2] < 2.3
