"""Which rows steer λ in a transformers Trainer: chosen, withheld where they are training rows, read as it reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from varlora.adapters import unwrapped_model
from varlora.ivon.config import IVONConfig
from varlora.ivon.held_out import HeldOut
from varlora.ivon.measuring import ROWS_PER_MEASUREMENT, work_of_a_step
from varlora.ivon.steering import leave_unsteered, plan_of, too_little
from varlora.ivon.withholding import MOST_ROWS, Withheld, WithholdingSampler, withheld_of, withholding
from varlora.posterior.wrapped import unwrapped
from varlora.training.resuming import rows_per_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Words:
    """What messages call the rows and options of whoever trains: in a trainer of one's own, or `varlora train`.

    Attributes:
        rows: the validation rows.
        missing: that there are none.
        give: how some are given.
        withhold: the option that takes training rows instead.
        leave_out: the option that does without.
        known: whether their name says that they are no test rows, so that a note is enough.
    """

    rows: str = "rows of eval_dataset"
    missing: str = "there is no eval_dataset with rows and a length"
    give: str = "an eval_dataset ('validation')"
    withhold: str = "IVONConfig(held_out='train')"
    leave_out: str = "IVONConfig(held_out='none')"
    known: bool = False


IN_A_RUN = Words(
    rows="validation rows",
    missing="there are no validation rows",
    give="validation rows (validation_file, validation_size)",
    withhold="--held_out train",
    leave_out="--held_out none",
    known=True,
)

SAMPLE = 32
"""Training rows whose length is looked at."""


def held_out_batches(trainer: Trainer, data: Any, rows: Sequence[int]) -> list[Mapping[str, Any]]:
    """Rows of a data set, collated as at evaluation; the same batches on every rank and in every resumed run.

    The random state of training is left alone, and the trainer's own loaders (which it may keep) too.
    """
    subset = data.select(list(rows)) if hasattr(data, "select") else Subset(data, list(rows))
    device = trainer.args.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(trainer.args.seed)  # a collator may draw, as one that masks words does
        loader = trainer.get_test_dataloader(subset)
        # A measurement takes no more rows than it needs, of whatever batch, also where a batch cannot be cut.
        size = min(trainer.args.per_device_eval_batch_size, ROWS_PER_MEASUREMENT // 4)
        return list(DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn))


def _length(trainer: Trainer, held_out: HeldOut) -> float:
    """Tokens of a held-out row, padding included, in those of a training row; 1 where either has no tokens."""
    data: Any = trainer.train_dataset
    if not _has_rows(data):
        return 1.0
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(trainer.args.seed))[:SAMPLE].tolist()
    trained, asked = _num_tokens(held_out_batches(trainer, data, some)), _num_tokens(held_out.batches)
    return (asked / held_out.num_rows()) / (trained / len(some)) if trained and asked else 1.0


def _num_tokens(batches: Sequence[Mapping[str, Any]]) -> int:
    return sum(ids.numel() for batch in batches if isinstance(ids := batch.get("input_ids"), Tensor))


def validation_rows(data: Sized, seed: int) -> list[int]:
    """At most 256 rows of a validation set, drawn once.

    Example:
        >>> len(validation_rows(range(1000), seed=0)), validation_rows(range(3), seed=0)
        (256, [0, 1, 2])
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return sorted(order[:MOST_ROWS].tolist())


def model_logits(model: nn.Module, batch: Mapping[str, Any], label_name: str = "labels") -> tuple[Tensor, Tensor]:
    """Logits and labels of a transformers model: one answer a row, or one a token, shifted where its loss shifts them.

    Raises:
        ValueError: the batch has no labels, or the model returns no logits for them, or it is not known which logits
            belong to which.
    """
    if not isinstance(batch.get(label_name), Tensor):
        raise ValueError(f"the batches have no {label_name!r}, only {', '.join(sorted(batch))}.")
    labels = batch[label_name]
    base: Any = unwrapped_model(model)
    encoder_decoder = bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False))
    # Most models are called without labels, which spares the loss; a decoder's inputs are made of them.
    inputs = batch if encoder_decoder else {k: v for k, v in batch.items() if k != label_name}
    logits = getattr(model(**inputs), "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != labels.ndim + 1:
        shape = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else "none"
        raise ValueError(f"labels of shape {tuple(labels.shape)} need logits of one dimension more; found {shape}.")
    if labels.ndim == 1 or encoder_decoder:
        return logits, labels
    if not hasattr(base, "can_generate"):
        raise ValueError(
            f"whether {type(base).__name__} predicts a token or the one after it is not known: it is no transformers "
            "model. Say it by overriding answer_logits(model, batch)."
        )
    return (logits[:, :-1], labels[:, 1:]) if base.can_generate() else (logits, labels)


class HeldOutRows:
    """A trainer's held-out rows: which they are, withheld where they are training rows. A base of the mixin.

    Where `held_out="auto"` finds none, or they say nothing, a warning says why and λ stays; where they were asked for
    by name, that is an error.
    """

    words: Words = Words()
    _withheld: Withheld | None = None
    _withholder: WithholdingSampler | None = None
    _unsteered: str | None = None

    def answer_logits(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (..., C) and labels (...) of a batch of held-out rows; labels below 0 are none."""
        names = [name for name in getattr(self, "label_names", None) or () if name in batch]
        if len(names) > 1:
            raise ValueError(f"the rows have several labels, {', '.join(names)}.")
        return model_logits(model, batch, *names)

    def answer_readout(self) -> Mapping[str, Any] | None:
        """How `answer_logits` reads an answer, where predictions are read alike: `Readout.to_dict()`."""
        return None

    def choose_held_out(self, options: IVONConfig) -> None:
        """Decides which rows will steer λ; called when the trainer is made.

        Args:
            options: filled in by the recipe.

        Raises:
            ValueError: there are no rows of the kind asked for.
        """
        trainer: Any = self
        self._ivon = options
        if options.ess != "auto" or options.held_out == "none":
            return
        usable = _has_rows(trainer.eval_dataset)
        if options.held_out == "validation" and not usable:
            self._give_up(self.words.missing)
        if options.held_out == "train" or not usable:
            self._withheld = withheld_of(trainer.train_dataset, _epochs(trainer), trainer.args.seed)
            if self._withheld is None:
                validation = "" if options.held_out == "train" else f"{self.words.missing}, and "
                self._give_up(f"{validation}the training set has fewer than 300 rows, or no length")

    def held_out_rows(self) -> HeldOut | Literal["none"] | None:
        """The rows that steer λ, ready; None, after a warning, where none do, and "none" where none are meant to.

        Called when training begins.

        Raises:
            ValueError: they were asked for by name, and the model gives no logits for them.
        """
        trainer: Any = self
        if self._ivon.ess != "auto":  # a checkpoint of a run that was steered, resumed by one that is not
            return "none"
        if self._unsteered is not None:
            self._warn()
            return None
        if self._withheld is not None:
            data, rows, source = trainer.train_dataset, self._withheld.rows, "train"
            batches_per_epoch = len(trainer.callback_handler.train_dataloader)
            until = self._withheld.epochs * _steps_per_epoch(trainer.args, batches_per_epoch)
            if unwrapped(trainer.optimizer).step_index > trainer.state.global_step:
                self._give_up("the rows to withhold were trained on by a former train()", by_name=False)
                self._warn()
                return None
        else:
            data, source, until = trainer.eval_dataset, "validation", None
            rows = validation_rows(data, trainer.args.seed)
        try:
            batches = held_out_batches(trainer, data, rows)
            held_out = HeldOut(
                batches=batches,
                logits=self.answer_logits,
                source=source,
                readout=self.answer_readout(),
                until_step=until,
                label_names=getattr(trainer, "label_names", None) or ("labels",),
            )
            held_out.length = _length(trainer, held_out) if until is None else 1.0
            held_out.check(trainer.model)
            work = work_of_a_step(trainer.model, trainer.args, trainer.train_dataset)
            plan = plan_of(held_out, work, trainer.state)
        except ValueError as error:
            self._give_up(f"held-out rows cannot be predicted ({error})", error)
            self._warn()
            return None
        if not plan.steps:
            self._give_up(too_little(plan, trainer.state), by_name=False)
            self._warn()
            return None
        if source == "validation":
            logger.log(
                logging.INFO if self._ivon.held_out == "validation" or self.words.known else logging.WARNING,
                "%s on %d %s: do not report results on these rows. %s%s withholds training rows for a while instead.",
                "ess is steered and a temperature fitted" if len(plan.steps) > 1 else "a temperature is fitted",
                held_out.num_rows(),
                self.words.rows,
                "" if self.words.known else "Validation rows that are not the test rows avoid it; ",
                self.words.withhold,
            )
        return held_out

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if self._withheld is None or self._unsteered is not None:
            return sampler
        trainer: Any = self
        seed = trainer.args.data_seed if trainer.args.data_seed is not None else trainer.args.seed
        try:
            self._withholder = withholding(sampler, trainer.train_dataset, self._withheld, seed)
        except ValueError as error:
            self._give_up(str(error), error)
            return sampler
        return self._withholder

    def _give_up(self, reason: str, error: ValueError | None = None, *, by_name: bool = True) -> None:
        """No rows steer λ: they are trained on from the start."""
        if by_name and self._ivon.held_out != "auto":
            raise ValueError(
                f"held_out={self._ivon.held_out!r} cannot be: {reason}. Give {self.words.give} or at "
                "least 300 training rows in random order ('train'), and logits for their labels (override "
                f"answer_logits of the trainer); or set {self.words.leave_out}."
            ) from error
        self._unsteered = reason
        if self._withholder is not None:
            self._withholder.epochs_withheld = 0

    def _warn(self) -> None:
        trainer: Any = self
        assert self._unsteered is not None
        leave_unsteered(unwrapped(trainer.optimizer), self._unsteered)


class EpochOfSampler(TrainerCallback):
    """Tells the sampler that withholds rows which epoch begins.

    A data loader does so too, but not through all wrappers: none of accelerate's on two ranks after a resume.
    """

    def __init__(self, trainer: HeldOutRows) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The epoch, counted from 0."""
        if self.trainer._withholder is not None:
            self.trainer._withholder.set_epoch(int(state.epoch or 0.0))


def _has_rows(data: Any) -> bool:
    return isinstance(data, Sized) and not isinstance(data, (Mapping, str, IterableDataset)) and len(data) > 0


def _epochs(trainer: Any) -> float:
    """How often the training passes over its rows."""
    arguments: TrainingArguments = trainer.args
    if arguments.max_steps <= 0 or not isinstance(trainer.train_dataset, Sized):
        return float(arguments.num_train_epochs)
    rows, of_batch = len(trainer.train_dataset), rows_per_step(arguments) // arguments.gradient_accumulation_steps
    batches = rows // of_batch if arguments.dataloader_drop_last else math.ceil(rows / of_batch)
    return arguments.max_steps / _steps_per_epoch(arguments, batches)


def _steps_per_epoch(arguments: TrainingArguments, batches: int) -> int:
    """Steps of a pass over so many batches; its last batch, and its last step, may hold fewer."""
    return max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
