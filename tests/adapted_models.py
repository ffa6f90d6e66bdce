"""Tiny models with adapters of many kinds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import nn

from models import lora, tiny_bert_classifier, tiny_llama, tiny_qwen3, token_ids

ADAPTED: dict[str, Callable[[], PeftModel]] = {
    "llama": lambda: lora(tiny_llama()),
    "qwen3": lambda: lora(tiny_qwen3(), target_modules=("q_proj", "up_proj")),
    "dora": lambda: lora(tiny_llama(), use_dora=True),
    "rslora": lambda: lora(tiny_llama(), use_rslora=True, layers_to_transform=[1]),
    "embedding": lambda: lora(tiny_llama(), target_modules=("q_proj", "embed_tokens")),
    "head": lambda: lora(tiny_llama(), modules_to_save=["lm_head"]),
    "classifier": lambda: lora(tiny_bert_classifier(), target_modules=("query",), task_type="SEQ_CLS"),
    "biases of adapted layers": lambda: lora(tiny_bert_classifier(), target_modules=("query",), bias="lora_only"),
    "all biases": lambda: lora(tiny_bert_classifier(), target_modules=("query",), bias="all"),
    "new tokens": lambda: lora(tiny_llama(), trainable_token_indices=[1, 2]),
    "bare parameters": lambda: lora(tiny_llama(), target_modules=(), target_parameters=["mlp.gate_proj.weight"]),
}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids()).logits
