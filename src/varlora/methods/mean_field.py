"""Variational inference over `lora_A` by backpropagation: the training that BLoB and ScalaBL share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from varlora.methods.mean_field_optimizer import MeanFieldAdamW, kl_cycle
from varlora.methods.method import Fit, Job, record
from varlora.methods.options import MeanFieldOptions
from varlora.methods.random_factors import RandomFactors, release
from varlora.posterior import PointMass, Posterior, point_mass_of
from varlora.posterior.wrapped import unwrapped
from varlora.training.adapter_trainer import AdapterTrainer

logger = logging.getLogger(__name__)

WARMUP_FRACTION = 0.06


@dataclass(frozen=True, kw_only=True)
class MeanField(MeanFieldOptions, ABC):
    """Trains a Gaussian `lora_A` with `MeanFieldAdamW`; B and a trained head are points.

    Subclasses say how A is random and what posterior that is.
    """

    @abstractmethod
    def random_factors(self, model: nn.Module, seed: int) -> RandomFactors:
        """Makes the model's `lora_A` random."""

    @abstractmethod
    def posterior(self, point: PointMass, std: Mapping[str, Tensor]) -> Posterior:
        """The Gaussian about a point.

        Args:
            point: the trained adapter, with the record of its training.
            std: by the checkpoint key of A, the standard deviations that belong to it.
        """

    def trainer(self, job: Job) -> Trainer:
        """A Trainer whose model's `lora_A` is random in training; `varlora.methods.random_factors.release` ends that.

        Raises:
            ValueError: the adapter is not plain LoRA on linear layers, or the training is distributed in a way that
                splits or copies the model.
        """
        arguments = job.arguments
        if arguments.n_gpu > 1 or arguments.deepspeed or arguments.fsdp:
            raise ValueError(
                f"method {self.name!r} needs the whole model in one process per GPU: start it with torchrun or "
                "accelerate launch (data parallel), without DeepSpeed and FSDP, or make one GPU visible."
            )
        arguments.learning_rate = self.learning_rate
        arguments.weight_decay = 0.0
        batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        options: dict[str, Any] = {
            **job.trainer_options(),
            "factors": self.random_factors(job.model, arguments.seed),
            "optimizer_options": {
                "prior_std": self.prior_std,
                "num_examples": len(job.train),
                "cycle": kl_cycle(len(job.train), batch) if self.kl_reweighting else None,
                "lr": self.learning_rate,
                "kl_lr": self.kl_learning_rate,
                "betas": (arguments.adam_beta1, arguments.adam_beta2),
                "eps": arguments.adam_epsilon,
            },
        }
        return MeanFieldTrainer(**options)

    def fit(self, job: Job) -> Fit:
        """Trains mean and standard deviations together; the model is left at the mean, without either's machinery."""
        try:
            trainer = self.trainer(job)
            assert isinstance(trainer, MeanFieldTrainer)
            log = job.run(trainer)
            std = trainer.factors.std()
        finally:
            release(job.model)
        optimizer = unwrapped(trainer.optimizer)
        assert isinstance(optimizer, MeanFieldAdamW)
        point = point_mass_of(job.model, **record(job, self.name))
        meta = replace(
            point.meta,
            ess=None if self.kl_reweighting else float(len(job.train)),
            diagnostics={
                "steps": optimizer.step_index,
                "kl_cycle": optimizer.cycle,
                "std_without_data": None if optimizer.cycle is None else optimizer.std_without_data,
                "median_std": torch.cat([s.flatten() for s in std.values()]).median().item(),
                "prior_std": self.prior_std,
            },
        )
        return Fit(posterior=self.posterior(replace(point, meta=meta), std), log=log)


class MeanFieldTrainer(AdapterTrainer):
    """A Trainer with `MeanFieldAdamW`, and a warm-up over 6 % of its steps where its arguments have none."""

    def __init__(self, *args: Any, factors: RandomFactors, optimizer_options: Mapping[str, Any], **kwargs: Any) -> None:
        self.factors = factors
        self.optimizer_options = optimizer_options
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """`MeanFieldAdamW` over every trained parameter, in one group."""
        if self.optimizer is None:
            parameters = [p for p in self.factors.model.parameters() if p.requires_grad]
            pairs = [(factor.mean, factor.sqrt_std) for factor in self.factors.factors]
            optimizer = MeanFieldAdamW(parameters, gaussians=pairs, **self.optimizer_options)
            self.factors.follow(optimizer)
            self.optimizer: torch.optim.Optimizer | None = optimizer
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The trainer's schedule, with a warm-up; warns of a run in which the KL hardly counts."""
        arguments = self.args
        if arguments.warmup_steps == 0:
            arguments.warmup_steps = int(WARMUP_FRACTION * num_training_steps)
            logger.info("warming up over %d of %d steps", arguments.warmup_steps, num_training_steps)
        cycle = self.optimizer_options["cycle"]
        if cycle is not None and num_training_steps < cycle:
            logger.warning(
                "the %d steps of this run are less than one cycle of the KL's weights (%d steps), almost all of whose "
                "weight comes at its end: the prior has next to no effect. Train longer, use larger batches, or set "
                "kl_reweighting=False.",
                num_training_steps,
                cycle,
            )
        return super().create_scheduler(num_training_steps, optimizer)
