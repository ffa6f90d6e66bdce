"""What a run's settings are to the trainer."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from small_runs import config, save_model
from varlora.runs.arguments import training_arguments
from varlora.runs.setting import load_setting


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def test_settings_reach_the_trainer(model: str, tmp_path: Path) -> None:
    settings = config(
        tmp_path / "run",
        model,
        max_steps=7,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        max_grad_norm=0.5,
        seed=9,
        save_steps=4,
    )
    found = training_arguments(load_setting(settings), tmp_path / "checkpoints", progress=False)
    assert (found.max_steps, found.per_device_train_batch_size, found.gradient_accumulation_steps) == (7, 3, 2)
    assert (found.lr_scheduler_type, found.warmup_steps, found.max_grad_norm) == ("cosine", 2, 0.5)
    assert (found.seed, found.save_steps, found.output_dir) == (9, 4, str(tmp_path / "checkpoints"))
    assert (found.disable_tqdm, str(found.eval_strategy.value), found.load_best_model_at_end) == (True, "no", False)


@pytest.mark.parametrize("recomputed", [False, True])
def test_recomputed_activations_are_asked_for_by_the_name_of_today(
    model: str, tmp_path: Path, recomputed: bool
) -> None:
    """transformers warned of the older name in every training."""
    settings = config(tmp_path / "run", model, gradient_checkpointing=recomputed)
    setting = load_setting(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        found = training_arguments(setting, tmp_path / "checkpoints", progress=False)
    assert found.gradient_checkpointing is recomputed


@pytest.mark.parametrize(
    ("options", "interval"),
    [
        ({"max_steps": 60}, 3),  # a twentieth
        ({"max_steps": 5}, 1),
        ({"max_steps": -1, "num_train_epochs": 30.0}, 6),  # 32 rows, 8 a step: 120 steps
        ({"max_steps": 60, "eval_steps": 11}, 11),
    ],
)
def test_early_stopping_validates_now_and_then(
    model: str, tmp_path: Path, options: dict[str, float], interval: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(tmp_path / "run", model, early_stopping=True, **options)
    setting = load_setting(settings)
    rows = len(setting.task.rows("validation"))
    found = training_arguments(setting, tmp_path / "checkpoints", progress=True)
    assert 0 < rows < 50
    assert f"{rows} validation rows are few to choose a step by" in caplog.text
    assert (found.eval_steps, found.save_steps, found.load_best_model_at_end) == (interval, interval, True)
    assert (found.metric_for_best_model, found.greater_is_better) == ("eval_loss", False)
