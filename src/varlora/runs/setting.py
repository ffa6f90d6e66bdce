"""Everything a run needs, loaded: the task, the tokenizer, the model with its adapter, and the encoded rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging as progress_bars

from varlora.adapters import is_base_embedding
from varlora.io.files import read_json
from varlora.posterior import PosteriorMeta
from varlora.posterior.manifest import ADAPTER_CONFIG, ADAPTER_MEAN
from varlora.readout.readout import AnswerTokens, ChoiceTexts, ClassHead, Readout, readout_from_dict
from varlora.runs.base_model import pretrained_of, tokenizer_name
from varlora.runs.config import FolderConfig, RunConfig
from varlora.runs.data import load_task
from varlora.runs.lora import lora_config
from varlora.runs.quantization import quantization_config
from varlora.tasks import Collator, Task, answer_tokens, context_length, encode
from varlora.tasks.encode import Family
from varlora.tasks.tokens import SharedTokenError

logger = logging.getLogger(__name__)

PROMPTS_VERIFIED = 256
"""Prompts on which the answer tokens are verified."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run's parts, loaded.

    Attributes:
        config: the run's settings.
        task: the task with its splits.
        tokenizer: the model's tokenizer.
        family: "causal" or "encoder".
        model: the model with its adapter attached.
        readout: how the answer is read; None for a task of completions.
        collate: makes batches.
    """

    config: RunConfig
    task: Task
    tokenizer: PreTrainedTokenizerBase
    family: Family
    model: nn.Module
    readout: Readout | None
    collate: Collator

    def encoded(self, split: str) -> datasets.Dataset:
        """The token ids of a split."""
        limits = [n for n in (self.config.max_length, context_length(self.model.config)) if n is not None]
        return encode(
            self.task,
            split,
            self.tokenizer,
            min(limits) if limits else None,
            family=self.family,
            truncation=self.config.truncation,
        )

    def batches(self, encoded: datasets.Dataset) -> DataLoader[Any]:
        """Batches of encoded rows, in order, with ids."""
        return DataLoader(
            encoded,
            batch_size=self.config.per_device_eval_batch_size,
            collate_fn=replace(self.collate, ids=True),
        )


def load_setting(config: RunConfig) -> Setting:
    """Loads what a new run needs; the model gets a fresh adapter.

    Raises:
        ValueError: the model or the data do not fit; the message says what to do.
    """
    tokenizer = _tokenizer(config)
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
    torch.manual_seed(config.seed)
    readout = readout_of(config, task, tokenizer, family, split="train")
    base, new_modules = _base_model(config, family, task.answers)
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
        task=scored_as(task, readout),
        tokenizer=tokenizer,
        family=family,
        model=model,
        readout=readout,
        collate=Collator.of(task, tokenizer, family=family),
    )


@dataclass(frozen=True, kw_only=True)
class FinishedModel:
    """A finished run's model, to be asked whatever rows.

    Attributes:
        config: the run's settings.
        folder: the run's folder.
        tokenizer, family, model, readout: as in `Setting`.
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
        collate = Collator.of(task, self.tokenizer, family=self.family)
        if self.readout is not None:
            collate = replace(collate, num_classes=self.readout.num_classes)
        return Setting(
            config=self.config,
            task=scored_as(task, self.readout),
            tokenizer=self.tokenizer,
            family=self.family,
            model=self.model,
            readout=self.readout,
            collate=collate,
        )

    def activate(self) -> None:
        """Makes the run's adapter the active one; to find that it is costs nothing."""
        model = self.model
        if isinstance(model, PeftModel) and model.active_adapter != self.adapter:
            model.set_adapter(self.adapter, inference_mode=True)


def reload_model(
    config: RunConfig,
    folder: Path,
    meta: PosteriorMeta,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    beside: FinishedModel | None = None,
) -> FinishedModel:
    """Loads a finished run's base model with the adapter of its folder.

    Args:
        config: the run's settings.
        folder: the run's folder.
        meta: its posterior's meta.
        tokenizer: the base model's, where it is at hand.
        device: where to; None: a CUDA GPU where there is one.
        beside: another run's, on the same base model: the adapter goes beside its own, and no base model is loaded.

    Raises:
        ValueError: nothing can be loaded from where the base model should be, or the two have not one base model.
    """
    family = family_of(config)
    readout = readout_from_dict(meta.readout) if meta.readout is not None else None
    if beside is not None:
        model, adapter = _put_beside(config, folder, family, beside)
        return replace(beside, config=config, folder=folder, model=model, readout=readout, adapter=adapter)
    base, new_modules = _base_model(config, family, _learned_answers(readout))
    model = _with_adapter(base, folder, config)
    if isinstance(config, FolderConfig):
        _check_new_modules(model, new_modules, config)
    if config.quantization == "none":  # bitsandbytes has placed what it quantized
        model = model.to(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    return FinishedModel(
        config=config,
        folder=folder,
        tokenizer=tokenizer if tokenizer is not None else _tokenizer(config, folder),
        family=family,
        model=model,
        readout=readout,
    )


def base_of(config: RunConfig) -> tuple[str, ...]:
    """What tells the base models of settings apart: two runs with the same can share one, if it is a causal LM."""
    said = (pretrained_of(config), config.model_revision, config.dtype, config.quantization, family_of(config))
    return tuple(map(str, said))


def _put_beside(config: RunConfig, folder: Path, family: Family, beside: FinishedModel) -> tuple[PeftModel, str]:
    model = beside.model
    if not isinstance(model, PeftModel) or family != "causal" or base_of(config) != base_of(beside.config):
        raise ValueError(
            f"{folder} cannot share the base model of {beside.folder}: both must be causal language models with the "
            "same model_name_or_path, model_revision, dtype and quantization."
        )
    name = f"beside{len(model.peft_config)}"
    model.load_adapter(str(folder), adapter_name=name)
    model.set_adapter(name, inference_mode=True)
    return model, name


def reload_setting(config: RunConfig, folder: Path, meta: PosteriorMeta, task: Task | None = None) -> Setting:
    """Loads what evaluating a finished run needs: its base model with the adapter of its folder, and its readout.

    Args:
        config: the run's settings.
        folder: the run's folder.
        meta: its posterior's meta.
        task: rows to evaluate on; None loads the run's own.

    Raises:
        ValueError: the task's answers are not those that the run has learned.
    """
    tokenizer = _tokenizer(config, folder)
    readout = readout_from_dict(meta.readout) if meta.readout is not None else None
    task = task if task is not None else load_task(config, tokenizer)
    _check_answers(task, readout, folder)  # before the model is loaded
    return reload_model(config, folder, meta, tokenizer=tokenizer).setting(task)


def _learned_answers(readout: Readout | None) -> tuple[str, ...]:
    if readout is None:
        return ()
    return readout.classes if isinstance(readout, ClassHead) else readout.answers  # type: ignore[attr-defined]


def _check_answers(task: Task, readout: Readout | None, folder: Path) -> None:
    learned = _learned_answers(readout)
    if readout is not None and task.answers != learned[: len(task.answers)]:
        raise ValueError(
            f"task {task.name!r} has the answers {', '.join(task.answers)}, but {folder} has learned "
            f"{', '.join(learned)}, in that order. Give rows with these answers (label_names_file sets an order)."
        )


def _with_adapter(base: nn.Module, folder: Path, config: RunConfig) -> PeftModel:
    """The base model with the adapter of a folder, its vocabulary as large as the adapter's embeddings."""
    embeddings: Any = base.get_input_embeddings()  # type: ignore[operator]
    rows = _embedding_rows(folder)
    if rows is not None and rows != len(embeddings.weight):
        base.resize_token_embeddings(rows, mean_resizing=False)  # type: ignore[operator]
    try:
        return PeftModel.from_pretrained(base, str(folder))
    except RuntimeError as error:  # sizes that do not match
        told = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"the adapter in {folder} does not fit {config.model_name_or_path}: {told} Give the base model that it "
            "was trained on (model_name_or_path) and, of a classification head, as many answers as it has outputs."
        ) from error


def _embedding_rows(folder: Path) -> int | None:
    """How many rows the embeddings have that an adapter's file holds whole; None where it holds none."""
    file = folder / ADAPTER_MEAN
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (it is no dict)
            if is_base_embedding(key):
                return int(tensors.get_slice(key).get_shape()[0])
    return None


def _check_new_modules(model: PeftModel, names: Sequence[str], config: RunConfig) -> None:
    """Refuses modules that the base model lacks and the adapter does not bring: they would answer at random."""
    held = get_peft_model_state_dict(model)
    if missing := [name for name in names if not any(f".{name}." in key for key in held)]:
        raise ValueError(
            f"{config.model_name_or_path} lacks the weights of {', '.join(missing)}, and {config.output_dir} does not "
            "bring them: they would be drawn anew. Save the adapter with its head (LoraConfig(task_type='SEQ_CLS') or "
            "modules_to_save), or give the base model that has one."
        )


def _tokenizer(config: RunConfig, folder: Path | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer; that of a folder's own, where another program has put one there."""
    name = base = pretrained_of(config)
    _refuse_adapter(base)
    if folder is not None and isinstance(config, FolderConfig):
        name = tokenizer_name(config, folder)
    with _loading_from(base, name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=config.model_revision if name == base else None
        )
    return tokenizer


@contextmanager
def _loading_from(base: str, place: str) -> Iterator[None]:
    """Names the base model where nothing can be loaded, which the hub's own errors may not."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"model_name_or_path is {base!r}, and nothing can be loaded from {place}. {error}") from error


def _refuse_adapter(name: str) -> None:
    adapter = Path(name) / ADAPTER_CONFIG
    if adapter.is_file():
        raise ValueError(
            f"model_name_or_path is {name!r}, which holds an adapter, not a base model{_base_of(adapter)}. A "
            "run trains an adapter of its own on a base model; to train on top of this one, merge it first (PEFT's "
            "merge_and_unload, then save_pretrained)."
        )


def _base_of(adapter: Path) -> str:
    """What an adapter's configuration says of its base model, for a message."""
    try:
        base = read_json(adapter, dict[str, Any]).get("base_model_name_or_path")
    except ValueError:
        return ""
    return f"; its base model is {base!r}, give that" if isinstance(base, str) and base else ""


def family_of(config: RunConfig) -> Family:
    """Whether the model is read as a causal language model or as an encoder.

    Raises:
        ValueError: the settings leave it to the model's architecture, and that does not tell, or cannot be read.
    """
    if config.model_class == "causal":
        return "causal"
    if config.model_class == "encoder":
        return "encoder"
    base = pretrained_of(config)
    with _loading_from(base, base):
        description = AutoConfig.from_pretrained(base, revision=config.model_revision)
    names = description.architectures or []
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return "causal"
    if description.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return "encoder"
    raise ValueError(
        f"cannot tell whether {config.model_name_or_path} ({', '.join(names) or description.model_type}) is a causal "
        "language model or an encoder; set model_class to 'causal' or 'encoder'."
    )


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


def _base_model(config: RunConfig, family: Family, answers: tuple[str, ...]) -> tuple[nn.Module, list[str]]:
    """The frozen model, and the names of its modules that the checkpoint does not hold (a new head)."""
    options: dict[str, Any] = {
        "revision": config.model_revision,
        "dtype": config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
        "output_loading_info": True,
    }
    loader: Any = AutoModelForCausalLM if family == "causal" else AutoModelForSequenceClassification
    if family == "encoder":
        options |= {"num_labels": len(answers), "ignore_mismatched_sizes": True}
    if (quantized := quantization_config(config)) is not None:
        options["quantization_config"] = quantized
    base = pretrained_of(config)
    with without_bars(), _loading_from(base, base):
        model, info = loader.from_pretrained(base, **options)
    if quantized is not None:
        prepare: Any = prepare_model_for_kbit_training
        model = prepare(model, use_gradient_checkpointing=config.gradient_checkpointing)
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers takes an adapter of the hub for its base model
        raise ValueError(
            f"model_name_or_path is {config.model_name_or_path!r}, which is an adapter. Give its base model, or a "
            "model into which it was merged."
        )
    missing = [*info["missing_keys"], *(key[0] for key in info.get("mismatched_keys", ()))]
    new = sorted({key.rsplit(".", 1)[0] for key in missing})
    if family == "causal" and new:
        raise ValueError(f"{config.model_name_or_path} lacks the weights of {', '.join(new)}; it is no complete model.")
    return model, new


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers shows one bar per loaded model; ours are about the work."""
    shown = progress_bars.is_progress_bar_enabled()
    progress_bars.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            progress_bars.enable_progress_bar()  # type: ignore[no-untyped-call]
