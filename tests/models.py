"""Tiny random models for the tests: made in milliseconds, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

INITIAL_STD = 0.2  # ten times the usual, so that narrow layers have outputs that differ


def tiny_llama(*, vocab_size: int = 64, hidden_size: int = 16, layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    """A causal LM of Llama's architecture."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_decoder(vocab_size, hidden_size, layers))).eval()


def tiny_qwen3(*, vocab_size: int = 64, hidden_size: int = 16, layers: int = 2, seed: int = 0) -> Qwen3ForCausalLM:
    """A causal LM of Qwen3's architecture: norms on queries and keys, tied embeddings."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        **_decoder(vocab_size, hidden_size, layers), head_dim=hidden_size // 2, tie_word_embeddings=True
    )
    return Qwen3ForCausalLM(config).eval()


def tiny_bert_classifier(
    *, num_labels: int = 3, vocab_size: int = 64, hidden_size: int = 16, layers: int = 2, seed: int = 0
) -> BertForSequenceClassification:
    """An encoder with a classification head (`classifier`)."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=num_labels,
        initializer_range=INITIAL_STD,
    )
    return BertForSequenceClassification(config).eval()


def lora(
    model: PreTrainedModel,
    *,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    r: int = 4,
    b_std: float = 0.1,
    seed: int = 1,
    **config: Any,
) -> PeftModel:
    """`model` with LoRA; lora_B is drawn with standard deviation `b_std`, so that the adapter has an effect."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=r, target_modules=list(target_modules), **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(std=b_std)
    return adapted


def token_ids(*, rows: int = 2, length: int = 6, vocab_size: int = 64, seed: int = 0) -> torch.Tensor:
    """Random token ids (rows, length), none of them 0."""
    return torch.randint(1, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def _decoder(vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": INITIAL_STD,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
