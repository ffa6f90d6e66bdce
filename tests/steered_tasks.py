"""Tasks on which λ must move, and a trainer that records which rows it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from varlora import IVON, IVONConfig, VariationalTrainerMixin
from varlora.ivon.fit_variance import NOT_BEGUN

WIDTH, CLASSES = 24, 2


class Rows(Dataset[dict[str, Tensor]]):
    """Random features; labels by the sign of the first, of which a share is flipped."""

    def __init__(self, count: int, flipped: float = 0.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(count, WIDTH, generator=generator)
        flips = torch.rand(count, generator=generator) < flipped
        self.labels = (self.features[:, 0] > 0).long() ^ flips.long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"features": self.features[index], "labels": self.labels[index], "row": torch.tensor(index)}


class Classifier(nn.Module):
    """A net with dropout, which remembers the rows that it has seen, by mode."""

    def __init__(self, hidden: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.dropout, self.last = nn.Linear(WIDTH, hidden), nn.Dropout(dropout), nn.Linear(hidden, CLASSES)
        self.trained_on: list[int] = []
        self.predicted: list[int] = []

    def forward(self, features: Tensor, row: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        (self.trained_on if self.training else self.predicted).extend(row.tolist())
        logits = self.last(self.dropout(torch.relu(self.first(features))))
        return SequenceClassifierOutput(
            loss=F.cross_entropy(logits, labels) if labels is not None else None, logits=logits
        )


class VariationalTrainer(VariationalTrainerMixin, Trainer):
    """transformers' Trainer with IVON."""


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 5,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return TrainingArguments(output_dir=str(folder), **(given | options))


def trainer_of(
    folder: Path,
    *,
    model: nn.Module | None = None,
    train: Any = None,
    validation: Any = None,
    held_out: Any = None,
    ess: Any = None,
    callbacks: Any = None,
    **options: Any,
) -> VariationalTrainer:
    """320 training rows, a fifth of their labels wrong; no validation rows unless they are given."""
    return VariationalTrainer(
        model=model if model is not None else Classifier(),
        args=arguments(folder, **options),
        train_dataset=train if train is not None else Rows(320, flipped=0.2),
        eval_dataset=validation,
        variational=IVONConfig(held_out=held_out, ess=ess),
        callbacks=callbacks,
    )


def ivon_of(trainer: Trainer) -> IVON:
    optimizer: Any = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, IVON)
    return optimizer


def group_of(trainer: Trainer) -> dict[str, Any]:
    return ivon_of(trainer).param_groups[0]


def state_of(trainer: Trainer) -> dict[str, Any]:
    """All that a resumed run must have in common with one that did not stop."""
    group = group_of(trainer)
    model = trainer.model
    assert isinstance(model, nn.Module)
    tensors = [*model.parameters(), *(ivon_of(trainer).state[p][k] for p in model.parameters() for k in STATE)]
    return {
        "weights and state": torch.cat([t.detach().flatten() for t in tensors]).tolist(),
        **{
            name: group[name]
            for name in ("ess", "auto_ess", "ess_start", *NOT_BEGUN, "held_out", "held_out_rows", "held_out_source")
        },
    }


STATE = ("momentum", "second_moment")


class Watched(TrainerCallback):
    """λ/λ_0 after each step, the epoch, and the rows of each epoch in order."""

    def __init__(self) -> None:
        self.ratios: list[float] = []
        self.epochs: list[float] = []
        self.rows: list[list[int]] = []
        self.measured: list[list[int]] = []
        self.begun = (0, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        group = optimizer.param_groups[0]
        self.ratios.append(group["ess"] / group["auto_ess"])
        self.epochs.append(state.epoch)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.begun = (len(model.trained_on), len(model.predicted))

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.rows.append(model.trained_on[self.begun[0] :])
        self.measured.append(model.predicted[self.begun[1] :])
