"""A run's settings, as transformers' trainer takes them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from varlora.metrics.selection import FEW_ROWS
from varlora.runs.setting import Setting
from varlora.runs.trackers import tracker_names

logger = logging.getLogger(__name__)

VALIDATIONS_PER_RUN = 20
NAMED_ALIKE = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "bf16", "seed"),
)
"""Settings that are transformers' own arguments."""
RECOMPUTED = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
"""What transformers calls `gradient_checkpointing`, by its version."""


def training_arguments(setting: Setting, checkpoints: Path, *, progress: bool) -> TrainingArguments:
    """What a run's settings are to the trainer.

    Args:
        setting: what is trained on what.
        checkpoints: folder for the trainer's checkpoints.
        progress: show a progress bar.

    Raises:
        ValueError: early stopping is asked for without validation rows that may decide it.
    """
    config = setting.config
    steps = config.save_steps
    given: dict[str, Any] = {name: getattr(config, name) for name in NAMED_ALIKE}
    given[RECOMPUTED] = config.gradient_checkpointing
    if config.early_stopping:
        rows = int(setting.usable.kept.sum())
        if not rows:
            raise ValueError(
                "early_stopping needs labelled validation rows that are not test rows, too; give validation_file or "
                "validation_size."
            )
        steps = config.eval_steps if config.eval_steps is not None else _validation_interval(setting)
        _tell_rows(rows)
        given |= {
            "eval_strategy": "steps",
            "eval_steps": steps,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
    return TrainingArguments(
        output_dir=str(checkpoints),
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="steps",
        save_steps=steps,
        save_total_limit=2,
        logging_steps=10,
        report_to=tracker_names(config.report_to),
        run_name=config.run_name or Path(config.output_dir).name,
        disable_tqdm=not progress,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        **given,
    )


def _tell_rows(rows: int) -> None:
    """How many rows will choose the step; a trainer keeps no losses by row, so that their luck cannot be told apart."""
    logger.info("early stopping keeps the step of the lowest mean loss over %d validation rows", rows)
    if rows < FEW_ROWS:
        logger.warning(
            "%d validation rows are few to choose a step by: their lowest loss may be luck. Give at least %d, or train "
            "to the end",
            rows,
            FEW_ROWS,
        )


def _validation_interval(setting: Setting) -> int:
    config = setting.config
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    epochs_steps = -(-len(setting.task.rows("train")) // per_step) * config.num_train_epochs
    return max(1, int((config.max_steps if config.max_steps > 0 else epochs_steps) // VALIDATIONS_PER_RUN))
