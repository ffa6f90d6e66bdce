"""IVON inside transformers.Trainer and TRL's trainers: one callback, one mixin; the options are `IVONConfig`.

Four ways in, from least to most:

0. `VariationalTrainer` in place of transformers' `Trainer`: one changed line.
1. Any Trainer that takes `optimizer_cls_and_kwargs` (transformers.Trainer, TRL's SFTTrainer), unmodified:
   `optimizer_cls_and_kwargs=(IVON, IVONConfig(lr=1e-4).optimizer_kwargs()), callbacks=[VariationalCallback()]`.
2. Any trainer class at all (DPOTrainer takes no optimizer arguments): put `VariationalTrainerMixin` in front of it.
3. Your own loop: `IVON` and `NoiseController` directly.

The loop, accumulation, mixed precision, distribution, checkpoints and logging stay the trainer's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from varlora.adapters import check_trainable
from varlora.ivon import IVON
from varlora.ivon.config import IVONConfig
from varlora.ivon.saves import SavesPosterior
from varlora.ivon.trainer_checks import check_arguments, check_bases, check_options_given, check_own_optimizer
from varlora.ivon.trainer_held_out import EpochOfSampler, HeldOutRows
from varlora.ivon.variational_callback import VariationalCallback
from varlora.posterior.wrapped import unwrapped
from varlora.training.adapter_trainer import AdapterTrainer, QuietEvaluation
from varlora.training.resuming import WholeCheckpoints


class VariationalTrainerMixin(HeldOutRows, WholeCheckpoints, SavesPosterior, QuietEvaluation):
    """Makes any trainer class variational: put it first among the bases. What it saves holds the posterior, too.

    Args:
        variational: IVON's options; everything else goes to the trainer unchanged. `TrainingArguments.learning_rate`
            is used by the recipe "auto", the default, and by no other; `weight_decay` belongs to AdamW and never is.

    Raises:
        ValueError: the training arguments set a weight decay (the prior is `IVONConfig.weight_decay`), choose another
            optimizer, or ask for something that would spoil the posterior; there are no held-out rows of the kind that
            `IVONConfig.held_out` names; `variational` is no `IVONConfig`; several draws are asked of a trainer that
            generates its rows.
        TypeError: the class has the mixin behind a trainer.

    Example:
        >>> from transformers import Trainer
        >>> class MyVariationalTrainer(VariationalTrainerMixin, Trainer):
        ...     pass                 # MyVariationalTrainer(model=..., args=..., variational=IVONConfig())
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_bases(cls, VariationalTrainerMixin)

    def __init__(self, *args: Any, variational: IVONConfig | None = None, **kwargs: Any) -> None:
        check_options_given(variational)
        self.variational = variational if variational is not None else IVONConfig()
        super().__init__(*args, **kwargs)
        check_own_optimizer(self)
        if self.variational.draws > 1 and hasattr(self, "_buffered_inputs"):
            raise ValueError(_NO_DRAWS.format(draws=self.variational.draws, trainer=type(self).__name__))
        arguments: TrainingArguments = self.args  # type: ignore[attr-defined]
        options = self.variational.resolved(arguments.learning_rate)
        if options.variance == "fit" and hasattr(self, "_buffered_inputs"):
            warnings.warn(
                f"the loss of {type(self).__name__} is no negative log-likelihood, and says nothing of the fit: the "
                "noise of variance='fit' follows the learning rates alone. IVONConfig(variance='hessian') has noise of "
                "a size that you set.",
                stacklevel=2,
            )
        if options.variance == "fit" and self.variational.ess not in (None, "auto"):
            warnings.warn(
                f"ess={self.variational.ess} has no effect on the noise of variance='fit', whose size "
                "follows learning rates and loss; it stops held-out rows from scaling it, as held_out='none' does. "
                "With variance='hessian' λ sets the size.",
                stacklevel=2,
            )
        check_arguments(arguments, options.optimizer_kwargs())
        if arguments.weight_decay not in (0.0, options.weight_decay):
            raise ValueError(
                f"TrainingArguments(weight_decay={arguments.weight_decay}) is AdamW's; IVON's prior is "
                f"IVONConfig(weight_decay={options.weight_decay}). Set the latter and leave the former out."
            )
        given = arguments.learning_rate != type(arguments).__dataclass_fields__["learning_rate"].default
        if given and arguments.learning_rate != options.lr:
            warnings.warn(
                f"TrainingArguments(learning_rate={arguments.learning_rate}) has no effect: IVON's learning rate is "
                f"IVONConfig(recipe={options.recipe!r}, lr={options.lr}).",
                stacklevel=2,
            )
        self.choose_held_out(options)
        callback = VariationalCallback(held_out=self.held_out_rows if options.held_out != "none" else "none")
        self.add_callback(callback)  # type: ignore[attr-defined]
        callbacks: list[Any] = self.callback_handler.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0, callbacks.pop())  # so that the trackers of report_to, which are there, see what it logs
        self.add_callback(EpochOfSampler(self))  # type: ignore[attr-defined]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """IVON over every trained parameter, in one group."""
        if self.optimizer is None:
            trained: nn.Module = self.model if model is None else model  # type: ignore[attr-defined]
            check_trainable(trained)
            parameters = [p for p in trained.parameters() if p.requires_grad]
            options = self.variational.resolved(self.args.learning_rate)  # type: ignore[attr-defined]
            self.optimizer: torch.optim.Optimizer | None = IVON(parameters, **options.optimizer_kwargs())
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch: S forward and backward passes, each at its own draw.

        Raises:
            ValueError: several draws of inputs that are no batch, but what a batch is to be made of.
        """
        draws = self.variational.draws
        step = super().training_step  # type: ignore[misc]
        with _observed_loss(self, 1.0 / draws):
            if draws == 1:
                return step(model, inputs, *args, **kwargs)  # type: ignore[no-any-return]
            if not isinstance(inputs, Mapping):
                raise ValueError(_NO_DRAWS.format(draws=draws, trainer=type(self).__name__))
            return torch.stack([step(model, dict(inputs), *args, **kwargs) for _ in range(draws)]).sum()


_NO_DRAWS = (
    "IVONConfig(draws={draws}) cannot be with {trainer}, which makes new rows in each training step instead of going "
    "over the same ones again. Leave draws at 1: every micro-batch has a draw of its own."
)


@contextmanager
def _observed_loss(trainer: Any, weight: float) -> Iterator[None]:
    """Within it the noise sees the trainer's loss, whoever wrote `compute_loss`, which counts with a weight."""
    own, noise = trainer.compute_loss, getattr(unwrapped(trainer.optimizer), "noise", None)

    def observed(*args: Any, **kwargs: Any) -> Any:
        computed = own(*args, **kwargs)
        loss, *rest = computed if isinstance(computed, tuple) else (computed,)
        if noise is not None:
            noise.observe_loss(loss)
        if weight != 1:
            loss = loss * weight
        return (loss, *rest) if isinstance(computed, tuple) else loss

    replaced = vars(trainer).get("compute_loss")
    trainer.compute_loss = observed
    try:
        yield
    finally:
        del trainer.compute_loss
        if replaced is not None:
            trainer.compute_loss = replaced


class VariationalTrainer(VariationalTrainerMixin, AdapterTrainer):
    """transformers' Trainer with IVON: `VariationalTrainer(...)` in place of `Trainer(...)` is the one changed line.

    Args:
        readout: how an answer is read, of tasks with C possible ones (`AdapterTrainer`); None: the model's own loss.

    Example:
        >>> from transformers import Trainer
        >>> issubclass(VariationalTrainer, Trainer)
        True
    """

    def answer_logits(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits and labels of a batch of held-out rows: (B, C) and (B,) by the readout, if there is one."""
        if self.readout is None:
            return super().answer_logits(model, batch)
        return self.readout.logits(model, batch), batch["labels"]

    def answer_readout(self) -> Mapping[str, Any] | None:
        """The readout of training and prediction."""
        return self.readout.to_dict() if self.readout is not None else None
