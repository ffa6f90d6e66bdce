"""Everything a run needs, loaded: the model with its adapter, its tokenizer and readout, and a task's rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from varlora.readout.readout import AnswerTokens, ChoiceTexts, ClassHead, Readout, answers_of
from varlora.runs.config import RunConfig
from varlora.runs.data import load_own_rows, load_task
from varlora.runs.folder import RunFolder
from varlora.runs.load_model import add_adapter, base_of, family_of, load_base_model, load_tokenizer
from varlora.runs.lora import lora_config
from varlora.runs.usable_rows import UsableRows, usable_rows
from varlora.tasks import Collator, Task, answer_tokens, context_length, encode
from varlora.tasks.encode import Family
from varlora.tasks.prompts import letters
from varlora.tasks.task import VALIDATION
from varlora.tasks.tokens import SharedTokenError

logger = logging.getLogger(__name__)

PROMPTS_VERIFIED = 256
"""Prompts on which the answer tokens are verified."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A run's model, to be asked whatever rows.

    Attributes:
        config: the run's settings.
        folder: the run's folder, or where it will be.
        tokenizer: the model's tokenizer.
        family: "causal" or "encoder".
        model: the model with its adapter attached.
        readout: how the answer is read; None for completions.
        adapter: the name of the run's adapter in the model, which may hold others' beside it.
    """

    config: RunConfig
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    family: Family
    model: nn.Module
    readout: Readout | None
    adapter: str = "default"

    def setting(self, task: Task) -> Setting:
        """What evaluating these rows needs; the run's adapter becomes the model's active one.

        Raises:
            ValueError: the task's answers are not those that the run has learned.
        """
        _check_answers(task, self.readout, self.folder)
        self.activate()
        own: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(LoadedModel)}
        return Setting(**own, task=scored_as(task, self.readout))

    def activate(self) -> None:
        """Makes the run's adapter the active one; to find that it is costs nothing."""
        model = self.model
        if isinstance(model, PeftModel) and model.active_adapter != self.adapter:
            model.set_adapter(self.adapter, inference_mode=True)


@dataclass(frozen=True, kw_only=True)
class Setting(LoadedModel):
    """A model, and a task with the splits to train or evaluate it on.

    Attributes:
        task: the task.
    """

    task: Task

    @property
    def collate(self) -> Collator:
        """Makes batches."""
        collate = Collator.of(self.task, self.tokenizer, family=self.family)
        return collate if self.readout is None else replace(collate, num_classes=self.readout.num_classes)

    def encoded(self, split: str) -> datasets.Dataset:
        """The token ids of a split."""
        limits = [n for n in (self.config.max_length, context_length(self.model.config)) if n is not None]
        return encode(
            self.task,
            split,
            self.tokenizer,
            min(limits, default=None),
            family=self.family,
            truncation=self.config.truncation,
        )

    @cached_property
    def usable(self) -> UsableRows:
        """The validation rows that may decide something."""
        return usable_rows(self.task)

    @property
    def deciding_nothing(self) -> list[int]:
        """Numbers of the validation rows that decide nothing, where some with an answer are test rows, too."""
        usable = self.usable
        return (~usable.kept).nonzero().flatten().tolist() if usable.left_out else []

    def encoded_usable(self) -> datasets.Dataset | None:
        """The token ids of the validation rows that may decide something; None where there are none."""
        kept = self.usable.kept
        if not kept.any():
            return None
        rows = self.encoded(VALIDATION)
        return rows if kept.all() else rows.select(kept.nonzero().flatten().tolist())

    def batches(self, encoded: datasets.Dataset) -> DataLoader[Any]:
        """Batches of encoded rows, in order, with ids."""
        collate = replace(self.collate, ids=True)
        return DataLoader(encoded, batch_size=self.config.per_device_eval_batch_size, collate_fn=collate)


def load_setting(config: RunConfig) -> Setting:
    """Loads what a new run needs; the model gets a fresh adapter.

    Raises:
        ValueError: the model or the data do not fit; the message says what to do.
    """
    tokenizer = load_tokenizer(config)
    family = family_of(config)
    task = load_task(config, tokenizer)
    if "train" not in task.splits:
        raise ValueError(
            f"task {task.name!r} has no training rows, only {', '.join(task.splits)}. Train on another task, and name "
            "this one in shift_tasks."
        )
    if family == "encoder" and config.prompt_style != "varlora":
        raise ValueError(
            f"prompt_style is {config.prompt_style!r}, which has no effect on an encoder: it reads the bare text. "
            "Leave it out."
        )
    if family == "encoder" and config.prompt_format != "plain":
        raise ValueError(
            f"prompt_format is {config.prompt_format!r}, which an encoder has no use for; leave it out "
            "(prompt_template words the text that it reads)."
        )
    _check_letters(config, task, family)
    torch.manual_seed(config.seed)
    readout = readout_of(config, task, tokenizer, family, split="train")
    base, new_modules = load_base_model(config, family, task.answers)
    adapter = lora_config(config, base, family, new_modules)
    try:
        model = get_peft_model(base, adapter)
    except ValueError as error:
        raise ValueError(
            f"the adapter does not fit {config.model_name_or_path}: {error} Name modules of the model in "
            "lora_target_modules, or use 'all-linear'."
        ) from error
    return Setting(
        config=config,
        folder=Path(config.output_dir),
        task=scored_as(task, readout),
        tokenizer=tokenizer,
        family=family,
        model=model,
        readout=readout,
    )


def reload_model(
    run: RunFolder,
    *,
    folder: Path | None = None,
    device: str | torch.device | None = None,
    beside: LoadedModel | None = None,
) -> LoadedModel:
    """Loads a finished run's base model with the adapter of its folder.

    Args:
        run: the run, with its settings as they are now.
        folder: the adapter's, where that is not the run's.
        device: where to; None: a CUDA GPU where there is one.
        beside: another run's, on the same base model: the adapter goes beside its own, and no base model is loaded.

    Raises:
        ValueError: nothing can be loaded from where the base model should be, or the two have not one base model.
    """
    config, folder, readout = run.config, folder or run.path, run.readout
    if beside is not None:
        model, adapter = _put_beside(config, folder, beside)
        return replace(beside, config=config, folder=folder, model=model, readout=readout, adapter=adapter)
    tokenizer = load_tokenizer(config, folder)  # first, since it refuses an adapter in the base model's place
    family = family_of(config)
    base, new_modules = load_base_model(config, family, answers_of(readout))
    model = add_adapter(base, folder, config, new_modules)
    if config.quantization == "none":  # bitsandbytes has placed what it quantized
        model = model.to(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    return LoadedModel(config=config, folder=folder, tokenizer=tokenizer, family=family, model=model, readout=readout)


def reload_setting(run: RunFolder, task: Task | None = None) -> Setting:
    """Loads what evaluating a finished run needs: its base model with the adapter of its folder, and its readout.

    Args:
        run: the run, with its settings as they are now.
        task: rows to evaluate on; None loads the run's own.

    Raises:
        ValueError: the task's answers are not those that the run has learned.
    """
    task = task if task is not None else load_own_rows(run)
    _check_answers(task, run.readout, run.path)  # before the model is loaded
    return reload_model(run).setting(task)


def readout_of(
    config: RunConfig, task: Task, tokenizer: PreTrainedTokenizerBase, family: Family, *, split: str
) -> AnswerTokens | ChoiceTexts | ClassHead | None:
    """How the answers of a task are read; None of completions.

    Args:
        config: the settings.
        task: the task.
        tokenizer: the model's.
        family: of the model.
        split: on whose prompts the answers' tokens are verified.

    Raises:
        ValueError: an encoder is to complete texts, or the answers cannot be told by their tokens.
    """
    if task.kind == "completion":
        if family == "encoder":
            raise ValueError(f"task {task.name!r} asks for completions; it needs a causal language model.")
        return None
    if family == "encoder":
        return ClassHead(classes=task.answers)
    if task.cloze:
        return ChoiceTexts(answers=task.answers, length_normalization=config.length_normalization or "none")
    prompts = task.rows(split)["prompt"][:PROMPTS_VERIFIED]
    try:
        return AnswerTokens(token_ids=answer_tokens(tokenizer, prompts, task.continuations), answers=task.answers)
    except SharedTokenError as error:
        logger.warning(
            "%s: %s. So whole answers are scored as texts behind the prompt, as with prompt_style 'cloze': each row is "
            "%d sequences, one for each answer",
            *(task.name, str(error).partition("; ")[0], len(task.answers)),
        )
        return ChoiceTexts(answers=task.answers)


def scored_as(task: Task, readout: Readout | None) -> Task:
    """The task as its answers are read: some that begin alike have to be scored as texts."""
    return replace(task, cloze=True) if isinstance(readout, ChoiceTexts) and not task.cloze else task


def _put_beside(config: RunConfig, folder: Path, beside: LoadedModel) -> tuple[PeftModel, str]:
    model = beside.model
    if not isinstance(model, PeftModel) or family_of(config) != "causal" or base_of(config) != base_of(beside.config):
        raise ValueError(
            f"{folder} cannot share the base model of {beside.folder}: both must be causal language models with the "
            "same model_name_or_path, model_revision, dtype and quantization."
        )
    name = f"beside{len(model.peft_config)}"
    model.load_adapter(str(folder), adapter_name=name)
    model.set_adapter(name, inference_mode=True)
    return model, name


def _check_letters(config: RunConfig, task: Task, family: Family) -> None:
    """Refuses letters for answers where nothing is answered by letters."""
    if config.label_answers != "letters":
        return
    asked = tuple(continuation.strip() for continuation in task.continuations)
    if family == "encoder":
        where = "an encoder answers by its head"
    elif task.kind == "completion":
        where = f"{task.name!r} has completions"
    elif asked != letters(len(asked)):
        where = f"{task.name!r} is answered by {', '.join(asked)}"
    else:
        return
    raise ValueError(f"label_answers is 'letters', which has no effect here: {where}. Leave it out.")


def _check_answers(task: Task, readout: Readout | None, folder: Path) -> None:
    learned = answers_of(readout)
    if readout is not None and task.answers != learned[: len(task.answers)]:
        raise ValueError(
            f"task {task.name!r} has the answers {', '.join(task.answers)}, but {folder} has learned "
            f"{', '.join(learned)}, in that order. Give rows with these answers (label_names_file sets an order)."
        )
