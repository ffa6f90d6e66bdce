"""A trainer whose checkpoints are whole or known not to be, and which ends where it is told to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from varlora.training.checkpoint_files import (
    DamagedCheckpointError,
    begin_checkpoint,
    damage_of,
    finish_checkpoint,
    last_whole_checkpoint,
    read_checkpoint_files,
    remove_old_checkpoints,
)
from varlora.training.stopping import StopRequest

logger = logging.getLogger(__name__)


TORCH_WRITES = ("PytorchStreamWriter", "inline_container")
"""What torch.save's errors name where a file cannot be written; they are no OSErrors."""


class WholeCheckpoints:
    """Makes a trainer's checkpoints list their files, and resumes from whole ones only: put it before the trainer.

    Besides, a training that is resumed from its last step is over: transformers' loop takes one step more.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The trainer's training.

        Args:
            resume_from_checkpoint: a checkpoint; True takes the newest one of `output_dir` that is whole.
            args: the trainer's own.
            kwargs: the same.

        Raises:
            ValueError: the checkpoint is damaged, or of a training with another number of processes or of rows in a
                step; there is none.
        """
        if resume_from_checkpoint:
            resume_from_checkpoint = str(self._checked(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of the next step: none after the last, which only a resumed training can ask for."""
        trainer: Any = self
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The trainer's save, between the two marks; what it does with a whole checkpoint waits for the second."""
        trainer: Any = self
        arguments = trainer.args
        checkpoint = Path(trainer._get_output_dir(trial), f"checkpoint-{trainer.state.global_step}")
        if arguments.should_save:
            begin_checkpoint(
                checkpoint,
                processes=arguments.world_size,
                rows_per_step=rows_per_step(arguments),
                resumable=not arguments.save_only_model,
            )
        trainer.accelerator.wait_for_everyone()  # no file of another process before the mark
        limit, pushed = arguments.save_total_limit, arguments.push_to_hub
        arguments.save_total_limit, arguments.push_to_hub = None, False
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except RuntimeError as error:
            if not any(words in str(error) for words in TORCH_WRITES):
                raise
            raise OSError(
                f"{checkpoint} could not be written whole; the disk may be full. What was saved before it is as it was "
                f"({error})"
            ) from error
        finally:
            arguments.save_total_limit, arguments.push_to_hub = limit, pushed
        trainer.accelerator.wait_for_everyone()  # each process writes the state of its generators
        if arguments.should_save:
            torch.save(arguments, checkpoint / TRAINING_ARGS_NAME)  # with what was held back above
            finish_checkpoint(checkpoint)
            best = trainer.state.best_model_checkpoint
            remove_old_checkpoints(checkpoint, best=Path(best) if best is not None else None, limit=limit)
        if pushed:
            trainer._push_from_checkpoint(str(checkpoint))

    def _checked(self, given: str | bool) -> Path:
        arguments: TrainingArguments = self.args  # type: ignore[attr-defined]
        if isinstance(given, bool):
            newest = last_whole_checkpoint(str(arguments.output_dir))
            if newest is None:
                raise ValueError(f"there is no checkpoint in {arguments.output_dir}; leave resume_from_checkpoint out.")
            checkpoint = newest
        else:
            checkpoint = Path(given)
            if not checkpoint.is_dir():
                raise ValueError(f"{checkpoint} is not a folder that exists; True takes the newest whole checkpoint.")
        files = read_checkpoint_files(checkpoint)
        if files is None:
            for name in ("optimizer*", "scheduler.pt", "rng_state*", "trainer_state.json"):
                if not any(checkpoint.glob(name)) and not any(checkpoint.glob("global_step*")):  # DeepSpeed's own
                    raise DamagedCheckpointError(
                        f"{checkpoint} has no {name}, without which training would go another way."
                    )
            logger.warning("%s does not list its files, so it was not checked that they are whole", checkpoint)
            return checkpoint
        if not isinstance(given, bool) and (damage := damage_of(checkpoint)) is not None:
            raise DamagedCheckpointError(f"{checkpoint} is {damage}. Resume from another; True takes the newest whole.")
        now = (arguments.world_size, rows_per_step(arguments))
        if (files.processes, files.rows_per_step) != now:
            raise ValueError(
                f"{checkpoint} is of a training in {files.processes} processes that read {files.rows_per_step} rows a "
                f"step, and this one is in {now[0]} and reads {now[1]}: its steps would be others. Resume with the "
                "same number of processes, batch size and gradient accumulation, or begin again."
            )
        return checkpoint


class StopWhenAsked(TrainerCallback):
    """Ends a training after the step in which it is asked to stop, with a checkpoint; all processes after the same."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Saves and stops, if that was asked of any process."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            number = torch.tensor([self.request.number], device=args.device)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self.request.number = int(number.item())
        if self.request.number:
            control.should_save = control.should_training_stop = True
        return control


def rows_per_step(arguments: TrainingArguments) -> int:
    """Rows that all processes together train on in a step."""
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)
