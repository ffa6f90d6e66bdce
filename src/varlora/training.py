"""IVON inside transformers.Trainer and TRL's trainers: one config, one callback, one mixin.

Three ways in, from least to most:

1. Any Trainer that takes `optimizer_cls_and_kwargs` (transformers.Trainer, TRL's SFTTrainer), unmodified:
   `optimizer_cls_and_kwargs=(IVON, IVONConfig().optimizer_kwargs()), callbacks=[VariationalCallback()]`.
2. Any trainer class at all (DPOTrainer takes no optimizer arguments): put `VariationalTrainerMixin` in front of it.
3. Your own loop: `IVON` and `NoiseController` directly.

The loop, accumulation, mixed precision, distribution, checkpoints and logging stay the trainer's.

Source of the defaults: Cong et al. 2024, arXiv 2411.04421 (recipe) and 2025, arXiv 2506.14280 (λ rule).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sized
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from varlora.noise import NoiseController
from varlora.optim import IVON
from varlora.optim.ivon import Prior
from varlora.optim.wrapped import restore_from, unwrapped

if TYPE_CHECKING:
    from varlora.readout import Readout

logger = logging.getLogger(__name__)

ESS_PER_ROOT_EXAMPLE = 5000.0
"""γ of the rule λ = γ √N (arXiv 2506.14280)."""


def default_ess(num_examples: int) -> float:
    """The effective sample size λ = 5000 √N.

    Args:
        num_examples: N, the number of training examples.

    Returns:
        λ. It is larger than N below N = 25 million, so the posterior is colder than Bayes' (λ = N).

    Example:
        >>> default_ess(400)
        100000.0

    Source: arXiv 2506.14280.
    """
    return ESS_PER_ROOT_EXAMPLE * math.sqrt(num_examples)


@dataclass(frozen=True, kw_only=True)
class IVONConfig:
    """IVON's options for LoRA fine-tuning; the defaults are the published recipe's.

    Attributes:
        lr: learning rate. With `clip_radius` the largest step per weight is `lr * clip_radius` (3e-5), the
            size of an AdamW step at that learning rate.
        ess: λ; None means 5000 √N for the N examples of the training set.
        hess_init: h0.
        betas: (β1, β2).
        weight_decay: δ of the prior; the trainer's own `weight_decay` plays no part.
        clip_radius: ξ.
        rescale_lr: multiply lr by (h0 + δ).
        prior: "fixed" or "adaptive".
        draws: Monte-Carlo draws S per micro-batch, each a forward and a backward pass (mixin only).

    Raises:
        ValueError: `draws` is not a positive integer (the other options are checked by IVON).

    Example:
        >>> IVONConfig(ess=1e6).optimizer_kwargs()["ess"]
        1000000.0

    Source: arXiv 2411.04421; λ rule arXiv 2506.14280.
    """

    lr: float = 0.03
    ess: float | None = None
    hess_init: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99999)
    weight_decay: float = 0.0
    clip_radius: float = 1e-3
    rescale_lr: bool = False
    prior: Prior = "fixed"
    draws: int = 1

    def __post_init__(self) -> None:
        if self.draws < 1 or self.draws != int(self.draws):
            raise ValueError(f"IVONConfig got draws={self.draws!r}; it must be a positive integer.")

    def optimizer_kwargs(self) -> dict[str, Any]:
        """The options that `IVON(params, ...)` takes."""
        options = asdict(self)
        del options["draws"]
        return options


class VariationalCallback(TrainerCallback):
    """Attaches a `NoiseController` for the span of training; for a trainer whose optimizer is IVON.

    It sets `ess` where it was left None, refuses settings that would spoil the posterior unnoticed, and after
    `load_best_model_at_end` brings the optimizer's Hessian back to the best checkpoint too.

    Args:
        seed: the noise's seed; None takes the trainer's.
        num_examples: N for the λ rule; None takes the size of the training set.

    Example:
        >>> from transformers import Trainer
        >>> from varlora import IVON, IVONConfig, VariationalCallback
        >>> arguments = dict(
        ...     optimizer_cls_and_kwargs=(IVON, IVONConfig().optimizer_kwargs()),
        ...     callbacks=[VariationalCallback()],
        ... )    # Trainer(model=..., args=..., train_dataset=..., **arguments)
    """

    def __init__(self, seed: int | None = None, num_examples: int | None = None) -> None:
        self.seed = seed
        self.num_examples = num_examples
        self.noise: NoiseController | None = None

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
        """Checks the run's settings, fills in λ and attaches the noise."""
        assert model is not None
        assert optimizer is not None
        if self.noise is not None:  # a former train() that was interrupted
            self.noise.detach()
        _refuse_unsupported(args)
        ivon = _unwrapped_ivon(optimizer)
        _check_weight_decay(ivon, args)
        if any(group["ess"] is None for group in ivon.param_groups):
            num_examples = self.num_examples if self.num_examples is not None else _num_examples(train_dataloader)
            ess = default_ess(num_examples)
            logger.info("ess = 5000 * sqrt(%d examples) = %.4g", num_examples, ess)
            for group in ivon.param_groups:
                group["ess"] = ess if group["ess"] is None else group["ess"]
        self.noise = NoiseController(model, optimizer, seed=self.seed if self.seed is not None else args.seed)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Detaches the noise; leaves the optimizer's state at the weights that the trainer ends with."""
        assert self.noise is not None
        ivon = self.noise.optimizer
        self.noise.detach()
        self.noise = None
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


class VariationalTrainerMixin(QuietEvaluation):
    """Makes any trainer class variational: put it first among the bases.

    Args:
        variational: IVON's options; everything else goes to the trainer unchanged. `TrainingArguments.learning_rate`
            and `weight_decay` belong to AdamW and are not used.

    Raises:
        ValueError: the training arguments set a weight decay (the prior is `IVONConfig.weight_decay`), or ask for
            something that would spoil the posterior.

    Example:
        >>> from transformers import Trainer
        >>> class VariationalTrainer(VariationalTrainerMixin, Trainer):
        ...     pass                 # VariationalTrainer(model=..., args=..., variational=IVONConfig())
    """

    def __init__(self, *args: Any, variational: IVONConfig | None = None, **kwargs: Any) -> None:
        self.variational = variational if variational is not None else IVONConfig()
        self._draw_weight = 1.0
        super().__init__(*args, **kwargs)
        arguments: TrainingArguments = self.args  # type: ignore[attr-defined]
        if arguments.weight_decay not in (0.0, self.variational.weight_decay):
            raise ValueError(
                f"TrainingArguments(weight_decay={arguments.weight_decay}) is AdamW's; IVON's prior is "
                f"IVONConfig(weight_decay={self.variational.weight_decay}). Set the latter and leave the former out."
            )
        if arguments.learning_rate != type(arguments).__dataclass_fields__["learning_rate"].default:
            warnings.warn(
                f"TrainingArguments(learning_rate={arguments.learning_rate}) has no effect: IVON's learning rate is "
                f"IVONConfig(lr={self.variational.lr}).",
                stacklevel=2,
            )
        self.add_callback(VariationalCallback())  # type: ignore[attr-defined]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """IVON over every trained parameter, in one group."""
        if self.optimizer is None:
            trained: nn.Module = self.model if model is None else model  # type: ignore[attr-defined]
            parameters = [p for p in trained.parameters() if p.requires_grad]
            self.optimizer: torch.optim.Optimizer | None = IVON(parameters, **self.variational.optimizer_kwargs())
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch: S forward and backward passes, each at its own draw."""
        draws = self.variational.draws
        self._draw_weight = 1.0 / draws
        try:
            step = super().training_step  # type: ignore[misc]
            losses = [step(model, dict(inputs), *args, **kwargs) for _ in range(draws)]
        finally:
            self._draw_weight = 1.0
        return torch.stack(losses).sum()

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's loss, weighted by 1/S within a training step."""
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        if self._draw_weight == 1.0:
            return loss
        if isinstance(loss, tuple):
            return (loss[0] * self._draw_weight, *loss[1:])
        return loss * self._draw_weight


class CompletionTrainer(QuietEvaluation, Trainer):
    """transformers' Trainer, for completions with the model's own loss."""


class AnswerTrainer(QuietEvaluation, Trainer):
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
        """Mean negative log-likelihood of the labels, in nats."""
        logits = self.readout.logits(model, inputs)  # (B, C)
        total = F.cross_entropy(logits, inputs["labels"], reduction="sum")
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


class VariationalAnswerTrainer(VariationalTrainerMixin, AnswerTrainer):
    """`AnswerTrainer` with IVON; see `VariationalTrainerMixin`."""


def _unwrapped_ivon(optimizer: torch.optim.Optimizer) -> IVON:
    ivon = unwrapped(optimizer)
    if not isinstance(ivon, IVON):
        raise TypeError(
            f"VariationalCallback needs a trainer whose optimizer is IVON, but it is {type(ivon).__name__}. Pass "
            "optimizer_cls_and_kwargs=(IVON, IVONConfig().optimizer_kwargs()), or use VariationalTrainerMixin."
        )
    return ivon


def _refuse_unsupported(args: TrainingArguments) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs and would copy the model over them in every step "
            "(torch.nn.DataParallel), which IVON cannot follow. Start one process per GPU (torchrun or accelerate "
            "launch), or set CUDA_VISIBLE_DEVICES to one."
        )
    if args.deepspeed:
        raise ValueError("IVON does not run under DeepSpeed, which replaces the optimizer. Use DDP or FSDP2.")
    if args.load_best_model_at_end and args.save_only_model:
        raise ValueError(
            "load_best_model_at_end with save_only_model=True would join the best checkpoint's mean to the last step's "
            "variance. Set save_only_model=False, so that the checkpoint holds both."
        )


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


def _num_examples(loader: DataLoader[Any] | None) -> int:
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, Sized):
        return len(dataset)
    raise ValueError(
        "ess is None and the training set has no length, so λ cannot be set from it. Pass IVONConfig(ess=...), or "
        "VariationalCallback(num_examples=...)."
    )
