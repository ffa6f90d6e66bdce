"""transformers' Trainer as every method trains with it: one class, whatever the rows ask and however it is optimized.

Given a readout it trains by the cross-entropy over the C possible answers, read as prediction reads them; without one
by the model's own loss. What a method adds comes from outside: its optimizer by transformers' own argument, its
schedule by a subclass, the weights that its evaluations are of by `evaluate_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer

from varlora.adapters import applied
from varlora.readout.readout import Readout
from varlora.tasks.encode import IGNORE
from varlora.training.resuming import WholeCheckpoints


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


class AdapterTrainer(WholeCheckpoints, QuietEvaluation, Trainer):
    """A Trainer with whole checkpoints, for completions or for answers.

    Args:
        readout: how the model's answer is read: the answer tokens of a causal language model, or a classification head.
            Batches are then those of `varlora.tasks`' collator. None: the model's own loss.
        evaluate_at: from the trainer's optimizer to the weights to evaluate, by checkpoint key; None, or what gives
            None: the weights that train.

    All other arguments are Trainer's.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> from varlora import AnswerTokens
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", r=2))
        >>> rows = [{"input_ids": [1, 2, 4], "attention_mask": [1, 1, 1], "labels": 0}]
        >>> trainer = AdapterTrainer(
        ...     model=model,
        ...     args=TrainingArguments("run", report_to="none", use_cpu=True, remove_unused_columns=False),
        ...     eval_dataset=rows,
        ...     readout=AnswerTokens(token_ids=(3, 7), answers=("A", "B")),
        ... )
        >>> trainer.get_eval_dataloader().dataset is rows
        True
    """

    def __init__(
        self,
        *args: Any,
        readout: Readout | None = None,
        evaluate_at: Callable[[torch.optim.Optimizer], Mapping[str, Tensor] | None] | None = None,
        **kwargs: Any,
    ) -> None:
        self.readout = readout
        self.evaluate_at = evaluate_at
        super().__init__(*args, **kwargs)
        if readout is not None:
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
        """The model's own loss, or the mean negative log-likelihood of the answers, in nats.

        In training, of smoothed labels where that is asked.
        """
        if self.readout is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        logits = self.readout.logits(model, inputs)  # (B, C)
        total = F.cross_entropy(logits, inputs["labels"], reduction="sum")
        if model.training and self.args.label_smoothing_factor:
            total = smoothed(total, logits, self.args.label_smoothing_factor)
        if num_items_in_batch is None:
            loss = total / (inputs["labels"] != IGNORE).sum().clamp(min=1)
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
        """The loss, and with a readout the answers' logits."""
        if self.readout is None:
            result: tuple[Tensor | None, Tensor | None, Tensor | None]
            result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            return result
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, outputs["logits"], inputs["labels"]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's evaluation, of the weights that the method evaluates."""
        optimizer = self.optimizer
        weights = self.evaluate_at(optimizer) if self.evaluate_at is not None and optimizer is not None else None
        assert isinstance(self.model, nn.Module)
        with applied(self.model, weights) if weights is not None else nullcontext():
            return super().evaluate(*args, **kwargs)


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
