"""The loss that every method trains and is stopped by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from models import lora, tiny_llama
from varlora import AnswerTokens
from varlora.training.adapter_trainer import AdapterTrainer


def test_rows_without_a_label_are_no_part_of_an_evaluations_mean(tmp_path: Path) -> None:
    trainer = AdapterTrainer(
        model=lora(tiny_llama()).eval(),
        args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, remove_unused_columns=False),
        readout=AnswerTokens(token_ids=(3, 7), answers=("A", "B")),
    )

    def loss(*labels: int) -> float:
        ids = torch.tensor([[1, 2, 4], [5, 2, 4]])[: len(labels)]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels)}
        return trainer.compute_loss(trainer.model, batch).item()

    assert loss(0, -100) == pytest.approx(loss(0), abs=1e-6)
    assert loss(0, 1) != pytest.approx(loss(0), abs=1e-4)
    assert loss(-100, -100) == 0
