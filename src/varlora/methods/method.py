"""What a method is: how to train an adapter, and what posterior comes out.

A method is one frozen dataclass: its fields are its options (`varlora.methods.options`), and `fit` trains the model's
adapter and returns the posterior. Training goes through `Job.run`, which runs a transformers Trainer and resumes it;
what needs the data again afterwards (curvature, an anchor set) reads them through `Job.batches`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import datasets
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from varlora.adapters import check_trainable
from varlora.posterior import Posterior
from varlora.readout.readout import Readout
from varlora.training.checkpoint_files import last_whole_checkpoint
from varlora.training.progress import show_progress
from varlora.training.resuming import StopWhenAsked
from varlora.training.stopping import Stopped, stop_requests


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained on what; the same for every method.

    Attributes:
        model: the model with its adapter attached.
        arguments: transformers' training arguments; checkpoints go to its `output_dir`.
        train: encoded training rows.
        validation: encoded validation rows that may decide something, which are those with an answer that are not
            test rows, too; None where there are none.
        collate: makes a batch of rows.
        readout: how the answer is read; None trains on completions with the model's own loss.
        callbacks: more of the trainer's callbacks.
        resume: go on from the newest whole checkpoint in `arguments.output_dir`, if there is one.
        progress: show progress bars.
    """

    model: nn.Module
    arguments: TrainingArguments
    train: datasets.Dataset
    validation: datasets.Dataset | None
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    readout: Readout | None
    callbacks: Sequence[TrainerCallback] = ()
    resume: bool = False
    progress: bool = False

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments of `AdapterTrainer`, which every method's trainer takes."""
        return {
            "model": self.model,
            "args": self.arguments,
            "train_dataset": self.train,
            "eval_dataset": self.validation,
            "data_collator": self.collate,
            "callbacks": list(self.callbacks),
            "readout": self.readout,
        }

    def run(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Trains, from the newest whole checkpoint if the job is to resume.

        Returns:
            The trainer's log, one entry per logged step.

        Raises:
            ValueError: there are checkpoints, and none is whole, or they are of another number of processes.
            Stopped: SIGTERM or Ctrl-C came; training has ended after its step, with a checkpoint.
        """
        check_trainable(self.model)
        show_progress(trainer, shown=self.progress)
        checkpoint = self._checkpoint(trainer.args) if self.resume else None
        with stop_requests() as request:
            trainer.add_callback(StopWhenAsked(request))
            trainer.train(resume_from_checkpoint=checkpoint)
        if request.number:
            name, state = signal.Signals(request.number).name, trainer.state
            where = f"step {state.global_step} of {state.max_steps}"
            raise Stopped(f"stopped by {name} at {where}; saved in {trainer.args.output_dir}.", request.number)
        return [dict(entry) for entry in trainer.state.log_history]

    def _checkpoint(self, arguments: TrainingArguments) -> str | None:
        """The main process's choice, for all."""
        newest = last_whole_checkpoint(str(arguments.output_dir)) if arguments.process_index == 0 else None
        [path] = broadcast_object_list([str(newest) if newest is not None else None])
        return path  # type: ignore[no-any-return]

    def batches(self, rows: datasets.Dataset, batch_size: int | None = None) -> DataLoader[Any]:
        """Batches of rows in order, for passes over the data after training.

        Args:
            rows: encoded rows.
            batch_size: rows per batch; None: as at evaluation.
        """
        size = batch_size if batch_size is not None else self.arguments.per_device_eval_batch_size
        return DataLoader(rows, batch_size=size, collate_fn=self.collate)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a method leaves: the posterior, and the trainer's log."""

    posterior: Posterior
    log: list[dict[str, Any]]


class Method(Protocol):
    """A way to train an adapter and to get a posterior from it."""

    name: ClassVar[str]

    def fit(self, job: Job) -> Fit:
        """Trains the job's model; afterwards its trained tensors are the posterior's point.

        Raises:
            ValueError: the job lacks something that the method needs.
        """


def record(job: Job, name: str) -> dict[str, Any]:
    """What every method writes into its posterior's meta: its name, N, and how the answer is read."""
    return {
        "method": name,
        "num_examples": len(job.train),
        "readout": job.readout.to_dict() if job.readout is not None else None,
    }
