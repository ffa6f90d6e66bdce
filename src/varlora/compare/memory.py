"""How much memory a training will take, from the model's configuration alone: no weight is loaded.

frozen weights, by data type  +  adapter × (weights, gradients, optimizer states)  +  activations  +  logits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from varlora.runs import RunConfig
from varlora.runs.setting import family_of, target_modules_of

STATES: Mapping[str, int] = {"ivon": 6, "blob": 5, "scalabl": 3}
"""Tensors of the adapter's size that a method keeps beside weights and gradients; AdamW's kin keep 2."""
ACTIVATIONS_PER_LAYER = 34
"""Bytes of each token, hidden unit and layer that 16-bit training keeps for the backward pass, with an attention that
keeps no table of scores (Korthikanti et al. 2022, arXiv 2205.05198, equation 2 without its last term)."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model with its adapter, counted.

    Attributes:
        parameters: of the model without adapter.
        matrices: those of them in linear layers, which quantization makes smaller and a forward pass multiplies by.
        adapter: parameters that train.
        hidden, layers, vocabulary: of the architecture.
        bytes_each: of a frozen parameter.
        causal: whether it is a causal language model.
    """

    parameters: int
    matrices: int
    adapter: int
    hidden: int
    layers: int
    vocabulary: int
    bytes_each: int
    causal: bool


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one training on one device.

    Attributes:
        frozen: the model's weights.
        adapter: its weights, gradients and the optimizer's states, in float32.
        activations: what the backward pass needs of a micro-batch.
        logits: of the answers, in float32, with their gradient.
    """

    frozen: float
    adapter: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it; the framework itself takes about half a GiB more on a GPU."""
        return self.frozen + self.adapter + self.activations + self.logits


def shape_of(config: RunConfig) -> Shape:
    """Counts a model's parameters on torch's meta device, which holds no numbers.

    The configuration is read from the model's folder, or from the hub or its cache; HF_HUB_OFFLINE is honoured.

    Args:
        config: a run's settings.

    Raises:
        ValueError: the configuration cannot be had, or the adapter does not fit the model.
        OSError: the configuration cannot be had.
    """
    return _shape(
        config.model_name_or_path,
        config.model_revision,
        config.model_class,
        config.dtype,
        config.quantization,
        config.lora_r,
        config.lora_target_modules,
    )


def memory_of(config: RunConfig, shape: Shape, tokens: float) -> Memory:
    """A training's memory on one device; a rough figure.

    Args:
        config: the settings.
        shape: of its model.
        tokens: in one row, on average.
    """
    each = {"none": shape.bytes_each, "8bit": 1.0, "4bit": 0.5}[config.quantization]
    others = shape.parameters - shape.matrices
    frozen = shape.matrices * each + others * (shape.bytes_each if config.quantization == "none" else 4)
    batch = config.per_device_train_batch_size * tokens
    wide = 1 if config.bf16 or shape.bytes_each < 4 else 2
    a_layer = ACTIVATIONS_PER_LAYER * batch * shape.hidden * wide
    kept = a_layer + 2 * wide * batch * shape.hidden * shape.layers  # the layers' inputs, and one layer recomputed
    answers = config.per_device_train_batch_size * (shape.vocabulary if shape.causal else 1)
    return Memory(
        frozen=frozen,
        adapter=4.0 * shape.adapter * (2 + STATES.get(config.method, 2)),
        activations=kept if config.gradient_checkpointing else a_layer * shape.layers,
        logits=8.0 * answers,
    )


@lru_cache(maxsize=64)
def _shape(
    name: str, revision: str | None, model_class: str, dtype: str, quantization: str, rank: int, targets: str | None
) -> Shape:
    settings = RunConfig(
        model_name_or_path=name,
        model_revision=revision,
        model_class=model_class,  # type: ignore[arg-type]
        task="-",
        output_dir="-",
    )
    causal = family_of(settings) == "causal"
    description: Any = AutoConfig.from_pretrained(name, revision=revision)
    loader: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = loader.from_config(description)
        parameters = sum(p.numel() for p in model.parameters())
        matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        if causal and (head := model.get_output_embeddings()) is not None:
            matrices -= head.weight.numel()  # answers need few rows of it, and quantization leaves it as it is
        adapter = LoraConfig(
            task_type=TaskType.CAUSAL_LM if causal else TaskType.SEQ_CLS,
            r=rank,
            target_modules=target_modules_of(targets),
        )
        trained = sum(p.numel() for p in get_peft_model(model, adapter).parameters() if p.requires_grad)
    text = description.get_text_config()
    return Shape(
        parameters=parameters,
        matrices=matrices,
        adapter=trained,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        bytes_each=_bytes_of(dtype, description),
        causal=causal,
    )


def _bytes_of(dtype: str, description: Any) -> int:
    kind = getattr(description, "dtype", None) if dtype == "auto" else dtype
    kind = getattr(torch, kind.removeprefix("torch.")) if isinstance(kind, str) else kind
    return int((kind or torch.float32).itemsize)
