"""λ steered under TRL's trainers: by the rows of one that has labels, and not by those of one that has none."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from models import lora, tiny_llama
from steered_tasks import group_of
from tiny_tokenizers import word_level
from varlora import IVONConfig, VariationalTrainerMixin, posterior_of

trl = pytest.importorskip("trl")

WORDS = tuple(f"w{i}" for i in range(40))


class VariationalSFTTrainer(VariationalTrainerMixin, trl.SFTTrainer):  # type: ignore[misc,name-defined]
    """TRL's SFTTrainer with IVON."""


class VariationalDPOTrainer(VariationalTrainerMixin, trl.DPOTrainer):  # type: ignore[misc,name-defined]
    """TRL's DPOTrainer with IVON."""


def options(folder: Path, **given: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "max_steps": 10,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "seed": 3,
        **given,
    }


def sentences(rows: int, seed: int = 0) -> list[str]:
    """Random words: nothing to be sure of."""
    generator = torch.Generator().manual_seed(seed)
    return [" ".join(f"w{i}" for i in torch.randint(0, 40, (n % 4 + 4,), generator=generator)) for n in range(rows)]


@pytest.mark.parametrize("source", ["validation", "train"])
def test_supervised_fine_tuning_is_steered_by_tokens(tmp_path: Path, source: str) -> None:
    model = lora(tiny_llama(vocab_size=len(word_level(words=WORDS))))
    trainer = VariationalSFTTrainer(
        model=model,
        args=trl.SFTConfig(**options(tmp_path, max_steps=40, per_device_train_batch_size=64)),
        train_dataset=Dataset.from_dict({"text": sentences(320)}),
        eval_dataset=Dataset.from_dict({"text": sentences(50, seed=1)}) if source == "validation" else None,
        processing_class=word_level(words=WORDS),
    )
    trainer.train()
    group = group_of(trainer)
    assert (group["held_out_source"], group["held_out_rows"]) == (source, 50 if source == "validation" else 32)
    record = group["held_out"]
    assert record["measurements"] == (2 if source == "validation" else 3)
    loss = record["loss"] / record["weight"]
    assert loss == pytest.approx(trainer.evaluate(trainer.train_dataset)["eval_loss"], rel=0.1)
    assert loss > 0.9 * math.log(40)
    assert group["ess"] < group["auto_ess"], "random weights are sure of what cannot be known"
    meta = posterior_of(model, trainer.optimizer).meta
    assert meta.diagnostics["held_out"]["source"] == source
    assert meta.diagnostics["counted"] == {"examples": 320, "mean_over": "tokens"}, "rows withheld for a while count"
    assert meta.num_examples == 320


def preferences(rows: int) -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"w{i % 9} w{i % 7}", "chosen": f" w{i % 5}", "rejected": f" w{i % 4 + 20}"} for i in range(rows)]
    )


def dpo(folder: Path, **given: Any) -> Any:
    return VariationalDPOTrainer(
        model=lora(tiny_llama(vocab_size=len(word_level(words=WORDS)))),
        args=trl.DPOConfig(**options(folder, max_steps=3)),
        train_dataset=preferences(320),
        processing_class=word_level(words=WORDS),
        **given,
    )


@pytest.mark.parametrize("validation", [False, True])
def test_preferences_have_no_labels_and_train_unsteered(
    tmp_path: Path, validation: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = dpo(tmp_path, eval_dataset=preferences(40) if validation else None)
    with caplog.at_level(logging.WARNING, logger="varlora"):
        trainer.train()
    assert "no held-out rows steer ess" in caplog.text
    assert "have no 'labels', only" in caplog.text
    assert trainer.state.global_step == 3
    assert group_of(trainer)["ess"] == group_of(trainer)["auto_ess"] == 32_000.0


def test_preferences_asked_for_by_name_are_an_error(tmp_path: Path) -> None:
    trainer = dpo(tmp_path, variational=IVONConfig(held_out="train"))
    with pytest.raises(ValueError, match=r"held_out='train' cannot be: .*have no 'labels'"):
        trainer.train()
