"""Noise and λ in any trainer whose optimizer holds a Gaussian posterior: a callback."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from varlora.adapters import base_fingerprint, base_loading, base_model_of, check_base, saved_tensors
from varlora.ivon.fit_variance import fit_variance
from varlora.ivon.held_out import HeldOut
from varlora.ivon.measuring import work_of_a_step
from varlora.ivon.noise import NoiseController
from varlora.ivon.steering import Steering, leave_unsteered
from varlora.ivon.trainer_checks import check_arguments, check_labels, check_skipped
from varlora.posterior.gaussian_optimizer import AutoOptimizer, GaussianOptimizer, missing_members
from varlora.posterior.training_record import training_record
from varlora.posterior.wrapped import restore_best, unwrapped
from varlora.tasks.description import description_of
from varlora.training.examples import count_examples

logger = logging.getLogger(__name__)


class VariationalCallback(TrainerCallback):
    """Attaches a `NoiseController` for the span of training; for a trainer whose optimizer is IVON.

    Another `varlora.GaussianOptimizer` does as well; what follows is of those that leave options open, as IVON.
    It sets `ess` and `hess_init` where they were left open ("auto" or None), refuses settings that would spoil the
    posterior unnoticed, and after `load_best_model_at_end` brings the optimizer's variance back to the best checkpoint
    too. A variance that follows the fit sees the loss that the model returns (`output.loss`, or `output.log_probs` as
    in TRL's SFTTrainer). Where the trainer makes the loss from the logits, as with `label_smoothing_factor`, take
    `VariationalTrainerMixin`, which sees that.

    Args:
        seed: the noise's seed; None takes the trainer's.
        num_examples: N for λ and h0; None counts the training set (`varlora.training.examples`).
        held_out: rows that steer λ where it is "auto" (`varlora.ivon.held_out`), or a function that gives them when
            training begins; without any it stays at 100 N, after a warning unless "none" asks for that.
            `VariationalTrainerMixin` finds them by itself.

    Raises:
        ValueError: before the first step: an argument of the trainer would have no effect, the adapter could not be
            saved, no training row has a label; in a step: the variance follows the fit and no loss was seen; at the
            end: more than half of the steps were skipped.

    Example:
        >>> from transformers import Trainer
        >>> from varlora import IVON, IVONConfig, VariationalCallback
        >>> arguments = dict(
        ...     optimizer_cls_and_kwargs=(IVON, IVONConfig(lr=1e-4).optimizer_kwargs()),
        ...     callbacks=[VariationalCallback()],
        ... )    # Trainer(model=..., args=..., train_dataset=..., **arguments)
    """

    def __init__(
        self,
        seed: int | None = None,
        num_examples: int | None = None,
        held_out: HeldOut | Callable[[], HeldOut | Literal["none"] | None] | Literal["none"] | None = None,
    ) -> None:
        if num_examples is not None and (isinstance(num_examples, bool) or not num_examples >= 1):
            raise ValueError(f"VariationalCallback got num_examples={num_examples!r}; it must be a positive number.")
        if not (held_out is None or held_out == "none" or isinstance(held_out, HeldOut) or callable(held_out)):
            raise ValueError(
                f"VariationalCallback got held_out of type {type(held_out).__name__}; it must be a HeldOut, a function "
                "that gives one, 'none', or None."
            )
        self.seed = seed
        self.num_examples = num_examples
        self.held_out = held_out
        self.noise: NoiseController | None = None
        self.steering: Steering | None = None
        self._taken_before = 0  # steps of the optimizer before this training

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        train_dataloader: DataLoader[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Checks the run's settings, fills in λ and h0, and attaches the noise."""
        assert model is not None
        assert optimizer is not None
        if self.noise is not None:  # a former train() that was interrupted
            self.noise.detach()
        gaussian = _gaussian(optimizer)
        check_arguments(args, gaussian.param_groups[0], optimizer=type(gaussian).__name__)
        _check_weight_decay(gaussian, args)
        check_labels(train_dataloader, args.label_names)
        record = training_record(gaussian)
        record.pop("held_out_why", None)  # of the training that a checkpoint is of
        described = description_of(getattr(train_dataloader, "dataset", None))
        if described is not None:
            record["task"] = described.to_dict()
        if isinstance(gaussian, AutoOptimizer) and gaussian.is_open():
            counted = (
                {"examples": self.num_examples}
                if self.num_examples is not None
                else count_examples(train_dataloader, packing=bool(getattr(args, "packing", False)))
            )
            gaussian.settle(counted["examples"])
            record["counted"] = counted
        held = saved_tensors(model).tensors()
        if state.global_step > 0:  # resumed
            check_base(model, held, record.get("base_fingerprint"), base_model_of(model)[0])
        record["base_fingerprint"], record["base_loading"] = base_fingerprint(model, held), base_loading(model)
        self.noise = NoiseController(model, optimizer, seed=self.seed if self.seed is not None else args.seed)
        self._taken_before = max(0, _taken(gaussian) - state.global_step)
        self.steering = None
        if isinstance(gaussian, AutoOptimizer) and gaussian.is_steered():
            if isinstance(self.held_out, HeldOut):
                self.held_out.check(model)
            held_out = self.held_out() if callable(self.held_out) else self.held_out
            if held_out is None and "held_out_why" not in record:
                leave_unsteered(
                    gaussian,
                    "none were given (VariationalCallback(held_out=...); VariationalTrainer and "
                    "VariationalTrainerMixin find them by themselves)",
                )
            if isinstance(held_out, HeldOut):
                work = work_of_a_step(model, args, getattr(train_dataloader, "dataset", None))
                self.steering = Steering(held_out, self.noise, work, state)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Refuses the step after the last, which transformers' loop takes when it resumes from there.

        Raises:
            ValueError: the training is over.
        """
        if state.global_step >= state.max_steps:
            raise ValueError(
                f"the checkpoint is of the last of {state.max_steps} steps, and transformers' Trainer would take "
                "another from it. Read its posterior (posterior_from_checkpoint), raise max_steps, or use "
                "VariationalTrainer, which takes none."
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Steers λ by the held-out rows."""
        if self.steering is not None:
            assert model is not None
            self.steering.after_step(model, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Logs λ where it is steered, and the noise's standard deviation where it is one for all that trains.

        The trackers of `report_to` see them where this callback comes before theirs, as the mixin sees to.
        """
        if self.noise is None or logs is None or "loss" not in logs:
            return
        optimizer = self.noise.optimizer
        groups = [group for group in optimizer.param_groups if group["params"]]
        found: dict[str, float] = {}
        if self.steering is not None:
            ess = optimizer.ess_of(groups[0]["params"][0])
            assert ess is not None  # it is steered
            found["ess"] = ess
        variances = {fit_variance(group) if group.get("variance") == "fit" else None for group in groups}
        if len(variances) == 1 and (variance := variances.pop()) is not None:
            found["noise_std"] = math.sqrt(variance)
        logs |= found
        state.log_history[-1] |= found

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Detaches the noise; leaves the optimizer's state at the weights that the trainer ends with."""
        assert self.noise is not None
        if self.steering is not None:
            self.steering.finish()
        optimizer = self.noise.optimizer
        self.noise.detach()
        self.noise = None
        check_skipped(state.global_step, _taken(optimizer) - self._taken_before)
        restore_best(optimizer, args, state)


def _gaussian(optimizer: torch.optim.Optimizer) -> GaussianOptimizer:
    inner: GaussianOptimizer = unwrapped(optimizer)
    if missing := missing_members(inner):
        raise TypeError(
            f"VariationalCallback needs a trainer whose optimizer is IVON, but it is {type(inner).__name__}, which has "
            f"no {', '.join(missing)} (varlora.GaussianOptimizer). Pass optimizer_cls_and_kwargs=(IVON, "
            "IVONConfig(lr=args.learning_rate).optimizer_kwargs()), or use VariationalTrainerMixin."
        )
    return inner


def _check_weight_decay(optimizer: GaussianOptimizer, args: TrainingArguments) -> None:
    """Trainer writes its own `weight_decay` (0.0 unless set) into every group, over the optimizer's."""
    defaults = optimizer.defaults
    for group in optimizer.param_groups:
        if group["params"] and "weight_decay" in defaults and group["weight_decay"] != defaults["weight_decay"]:
            raise ValueError(
                f"the prior's weight_decay={defaults['weight_decay']} given to {type(optimizer).__name__} was "
                f"overwritten with {group['weight_decay']} by TrainingArguments(weight_decay={args.weight_decay}). Set "
                "both to the same number and leave no trained parameter in the trainer's no-decay group, or use "
                "VariationalTrainerMixin, which keeps IVON's."
            )


def _taken(optimizer: GaussianOptimizer) -> int:
    return optimizer.step_index - optimizer.skipped_steps
