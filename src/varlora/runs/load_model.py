"""A base model, its tokenizer and a folder's adapter, loaded by transformers and PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, prepare_model_for_kbit_training
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from varlora.adapters import is_base_embedding
from varlora.io.files import read_json
from varlora.posterior.manifest import ADAPTER_CONFIG, ADAPTER_MEAN
from varlora.runs.base_model import pretrained_of, tokenizer_name
from varlora.runs.config import RunConfig
from varlora.runs.folder_config import FolderConfig
from varlora.runs.quantization import quantization_config
from varlora.runs.quiet_transformers import quiet_transformers
from varlora.tasks.encode import Family


def load_tokenizer(config: RunConfig, folder: Path | None = None) -> PreTrainedTokenizerBase:
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


def family_of(config: RunConfig) -> Family:
    """How the model is read: as a causal language model or as an encoder.

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


def load_base_model(config: RunConfig, family: Family, answers: Sequence[str]) -> tuple[nn.Module, list[str]]:
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
    with quiet_transformers(), _loading_from(base, base):
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


def add_adapter(base: nn.Module, folder: Path, config: RunConfig, new_modules: Sequence[str]) -> PeftModel:
    """The base model with the adapter of a folder, its vocabulary as large as the adapter's embeddings.

    Args:
        base: from `load_base_model`, with
        folder: the adapter's.
        config: the settings.
        new_modules: the modules that the base model lacks.

    Raises:
        ValueError: the adapter does not fit, or does not bring those modules.
    """
    embeddings: Any = base.get_input_embeddings()  # type: ignore[operator]
    rows = _embedding_rows(folder)
    if rows is not None and rows != len(embeddings.weight):
        base.resize_token_embeddings(rows, mean_resizing=False)  # type: ignore[operator]
    try:
        model: PeftModel = PeftModel.from_pretrained(base, str(folder))
    except RuntimeError as error:  # sizes that do not match
        why = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"the adapter in {folder} does not fit {config.model_name_or_path}: {why} Give the base model that it "
            "was trained on (model_name_or_path) and, of a classification head, as many answers as it has outputs."
        ) from error
    if isinstance(config, FolderConfig):  # else the run has trained them
        _check_new_modules(model, new_modules, config)
    return model


def base_of(config: RunConfig) -> tuple[str, ...]:
    """What tells the base models of settings apart: two runs with the same can share one, if it is a causal LM."""
    parts = (pretrained_of(config), config.model_revision, config.dtype, config.quantization, family_of(config))
    return tuple(map(str, parts))


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
