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

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from varlora.adapters import (
    base_fingerprint,
    base_model_of,
    check_base,
    check_trainable,
    fixed_tensors,
    trained_tensors,
)
from varlora.examples import count_examples
from varlora.held_out import HeldOut
from varlora.ivon_config import IVONConfig
from varlora.noise import NoiseController
from varlora.optim import IVON
from varlora.optim.auto import is_open, set_prior_width, settle
from varlora.optim.wrapped import restore_from, unwrapped
from varlora.resuming import WholeCheckpoints
from varlora.saves import SavesPosterior
from varlora.steering import EpochOfSampler, HeldOutRows, Steering, leave_unsteered
from varlora.trainer_checks import (
    check_arguments,
    check_bases,
    check_labels,
    check_options_given,
    check_own_optimizer,
    check_skipped,
)

if TYPE_CHECKING:
    from varlora.readout import Readout

logger = logging.getLogger(__name__)


class VariationalCallback(TrainerCallback):
    """Attaches a `NoiseController` for the span of training; for a trainer whose optimizer is IVON.

    It sets `ess` and `hess_init` where they were left open ("auto" or None), raises a `prior_width` of "auto" from step
    to step, refuses settings that would spoil the posterior unnoticed, and after `load_best_model_at_end` brings the
    optimizer's Hessian back to the best checkpoint too.

    Args:
        seed: the noise's seed; None takes the trainer's.
        num_examples: N for λ and h0; None counts the training set (`varlora.examples`).
        held_out: rows that steer λ where it is "auto" (`varlora.held_out`), or a function that gives them when training
            begins; without any it stays at 100 N, after a warning unless "none" asks for that.
            `VariationalTrainerMixin` finds them by itself.

    Raises:
        ValueError: before the first step: an argument of the trainer would have no effect, the adapter could not be
            saved, no training row has a label; at the end: more than half of the steps were skipped.

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
        """Checks the run's settings, fills in λ, h0 and the prior's width, and attaches the noise."""
        assert model is not None
        assert optimizer is not None
        if self.noise is not None:  # a former train() that was interrupted
            self.noise.detach()
        ivon = _unwrapped_ivon(optimizer)
        check_arguments(args, ivon.param_groups[0])
        _check_weight_decay(ivon, args)
        check_labels(train_dataloader, args.label_names)
        counted = {"examples": self.num_examples} if self.num_examples is not None else None
        for group in ivon.param_groups:
            group.pop("held_out_why", None)  # of the training that a checkpoint is of
            if is_open(group):
                if counted is None:
                    counted = count_examples(train_dataloader, packing=bool(getattr(args, "packing", False)))
                settle(group, counted["examples"])
                group["counted"] = counted
                logger.info("%d examples: ess = %.4g, h0 = %.4g", counted["examples"], group["ess"], group["hess_init"])
        set_prior_width(ivon, _share(state))
        held = [*trained_tensors(model), *fixed_tensors(model)]
        if state.global_step > 0:  # resumed
            check_base(model, held, ivon.param_groups[0].get("base_fingerprint"), base_model_of(model)[0])
        ivon.param_groups[0]["base_fingerprint"] = base_fingerprint(model, held)
        self.noise = NoiseController(model, optimizer, seed=self.seed if self.seed is not None else args.seed)
        self._taken_before = max(0, _taken(ivon) - state.global_step)
        self.steering = None
        if any(group.get("auto_ess") is not None for group in ivon.param_groups):
            if isinstance(self.held_out, HeldOut):
                self.held_out.check(model)
            held_out = self.held_out() if callable(self.held_out) else self.held_out
            if held_out is None and "held_out_why" not in ivon.param_groups[0]:
                leave_unsteered(
                    ivon,
                    "none were given (VariationalCallback(held_out=...); VariationalTrainer and "
                    "VariationalTrainerMixin find them by themselves)",
                )
            if isinstance(held_out, HeldOut):
                self.steering = Steering(held_out, self.noise, args, state)

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
        """Raises the movement prior's width; steers λ by the held-out rows."""
        assert self.noise is not None
        set_prior_width(self.noise.optimizer, _share(state))
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
        """Logs λ where it is steered."""
        if self.steering is not None and logs is not None and "loss" in logs:
            state.log_history[-1]["ess"] = logs["ess"] = self.steering.noise.optimizer.param_groups[0]["ess"]

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
        ivon = self.noise.optimizer
        self.noise.detach()
        self.noise = None
        check_skipped(state.global_step, _taken(ivon) - self._taken_before)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            restore_from(ivon, state.best_model_checkpoint)


class QuietEvaluation:
    """Makes a trainer's evaluation leave the random state of training alone: put it first among the bases.

    A pass over a data loader draws a seed from the global generator, so that dropout masks would depend on how often
    the model was evaluated.
    """

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's evaluation."""
        device: torch.device = self.args.device  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]


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
        if draws == 1:
            return step(model, inputs, *args, **kwargs)  # type: ignore[no-any-return]
        if not isinstance(inputs, Mapping):
            raise ValueError(_NO_DRAWS.format(draws=draws, trainer=type(self).__name__))
        with _weighted_loss(self, 1.0 / draws):
            losses = [step(model, dict(inputs), *args, **kwargs) for _ in range(draws)]
        return torch.stack(losses).sum()


_NO_DRAWS = (
    "IVONConfig(draws={draws}) cannot be with {trainer}, which makes new rows in each training step instead of going "
    "over the same ones again. Leave draws at 1: every micro-batch has a draw of its own."
)


@contextmanager
def _weighted_loss(trainer: Any, weight: float) -> Iterator[None]:
    """Within it the trainer's loss, whoever wrote `compute_loss`, counts with a weight."""
    own = trainer.compute_loss

    def weighted(*args: Any, **kwargs: Any) -> Any:
        loss = own(*args, **kwargs)
        return (loss[0] * weight, *loss[1:]) if isinstance(loss, tuple) else loss * weight

    replaced = vars(trainer).get("compute_loss")
    trainer.compute_loss = weighted
    try:
        yield
    finally:
        del trainer.compute_loss
        if replaced is not None:
            trainer.compute_loss = replaced


class VariationalTrainer(VariationalTrainerMixin, Trainer):
    """transformers' Trainer with IVON: `VariationalTrainer(...)` in place of `Trainer(...)` is the one changed line.

    Example:
        >>> issubclass(VariationalTrainer, Trainer)
        True
    """


class CompletionTrainer(WholeCheckpoints, QuietEvaluation, Trainer):
    """transformers' Trainer, for completions with the model's own loss."""


class AnswerTrainer(WholeCheckpoints, QuietEvaluation, Trainer):
    """A Trainer for tasks with C possible answers: cross-entropy over the answers' logits.

    The same `readout` reads the answer in training and in prediction: the answer tokens of a causal language
    model, or a classification head. Batches are those of `varlora.tasks`' collator.

    Args:
        readout: how the model's answer is read.

    All other arguments are Trainer's.
    """

    def __init__(self, *args: Any, readout: Readout, **kwargs: Any) -> None:
        self.readout = readout
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss below is normalised over the accumulated batch
        self._loss_shifts_labels = False
        self.label_names = ["labels"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the labels, in nats; in training, of smoothed labels where that is asked."""
        logits = self.readout.logits(model, inputs)  # (B, C)
        total = F.cross_entropy(logits, inputs["labels"], reduction="sum")
        if model.training and self.args.label_smoothing_factor:
            total = smoothed(total, logits, self.args.label_smoothing_factor)
        if num_items_in_batch is None:
            loss = total / len(logits)
        else:
            loss = total / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss and logits at the posterior mean."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, outputs["logits"], inputs["labels"]


def smoothed(total: Tensor, logits: Tensor, share: float) -> Tensor:
    """The summed negative log-likelihood of labels of which a share is spread evenly over each row's choices.

    Args:
        total: that of the labels themselves.
        logits: (B, C); -inf for choices that a row does not have, which get nothing.
        share: in [0, 1).

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, -torch.inf]])
        >>> own = F.cross_entropy(logits, torch.tensor([0]), reduction="sum")
        >>> round((smoothed(own, logits, 0.2) - own).item(), 4)                 # .1 of the label went to choice 1
        0.1
    """
    exist = torch.isfinite(logits)
    log_probs = logits.log_softmax(-1).masked_fill(~exist, 0.0)
    return (1 - share) * total - share * (log_probs.sum(-1) / exist.sum(-1)).sum()


class VariationalAnswerTrainer(VariationalTrainerMixin, AnswerTrainer):
    """`AnswerTrainer` with IVON; see `VariationalTrainerMixin`."""

    def answer_logits(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and labels (B,) of a batch of held-out rows."""
        return self.readout.logits(model, batch), batch["labels"]

    def answer_readout(self) -> Mapping[str, Any]:
        """The readout of training and prediction."""
        return self.readout.to_dict()


def _unwrapped_ivon(optimizer: torch.optim.Optimizer) -> IVON:
    ivon = unwrapped(optimizer)
    if not isinstance(ivon, IVON):
        raise TypeError(
            f"VariationalCallback needs a trainer whose optimizer is IVON, but it is {type(ivon).__name__}. Pass "
            "optimizer_cls_and_kwargs=(IVON, IVONConfig(lr=args.learning_rate).optimizer_kwargs()), or use "
            "VariationalTrainerMixin."
        )
    return ivon


def _check_weight_decay(ivon: IVON, args: TrainingArguments) -> None:
    """Trainer writes its own `weight_decay` (0.0 unless set) into every group, over the optimizer's."""
    wanted = ivon.defaults["weight_decay"]
    for group in ivon.param_groups:
        if group["params"] and group["weight_decay"] != wanted:
            raise ValueError(
                f"the prior's weight_decay={wanted} given to IVON was overwritten with {group['weight_decay']} by "
                f"TrainingArguments(weight_decay={args.weight_decay}). Set both to the same number and leave no "
                "trained parameter in the trainer's no-decay group, or use VariationalTrainerMixin, which keeps IVON's."
            )


def _taken(ivon: IVON) -> int:
    return ivon.step_index - ivon.skipped_steps


def _share(state: TrainerState) -> float:
    return state.global_step / max(state.max_steps, 1)
