"""EMA: AdamW, and the exponential moving average of its path as the one point.

Source: Polyak & Juditsky 1992, Acceleration of stochastic approximation by averaging.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import Trainer

from varlora.adapters import load_into, trained_tensors
from varlora.methods.adamw import AdamW
from varlora.methods.averages import AveragedAdamW, averaged_adamw
from varlora.methods.method import Fit, Job, record
from varlora.methods.options import EmaOptions
from varlora.posterior import point_mass_of
from varlora.posterior.wrapped import restore_best
from varlora.training.adapter_trainer import AdapterTrainer


@dataclass(frozen=True, kw_only=True)
class Ema(EmaOptions, AdamW):
    """AdamW with averaged weights; an `ema_decay` of .99 averages about the last hundred steps."""

    def trainer(self, job: Job) -> Trainer:
        """A Trainer whose AdamW keeps the average.

        Raises:
            ValueError: the arguments ask for another optimizer, or for checkpoints without its state.
        """
        self.set_arguments(job)
        options = self.own_adamw_options(job, kept="average is")
        parts = job.trainer_options()
        parts["optimizer_cls_and_kwargs"] = (AveragedAdamW, {**options, "ema_decay": self.ema_decay})
        return AdapterTrainer(**parts, evaluate_at=lambda optimizer: averages(job.model, averaged_adamw(optimizer)))

    def fit(self, job: Job) -> Fit:
        """The average as a point mass; the model is left there. Early stopping evaluates the average."""
        trainer = self.trainer(job)
        log = job.run(trainer)
        optimizer = averaged_adamw(trainer.optimizer)
        restore_best(optimizer, job.arguments, trainer.state)
        load_into(job.model, averages(job.model, optimizer))
        return Fit(posterior=point_mass_of(job.model, **record(job, self.name)), log=log)


def averages(model: nn.Module, optimizer: AveragedAdamW) -> dict[str, Tensor]:
    """By checkpoint key, the averages of what trains."""
    return {key: optimizer.average(p) for key, p in trained_tensors(model).items()}
