"""A tiny Llama as a GGUF file, and the weights that a reader must find in it; needs the library gguf."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models import tiny_llama
from tiny_tokenizers import byte_bpe

WIDTH, HEADS, PACKED = 32, 2, "model.layers.1.mlp.up_proj.weight"
"""PACKED is the tensor that is stored in 8 bit."""
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama_in_file(*, seed: int = 0) -> tuple[LlamaForCausalLM, Any]:
    """The model that `write_gguf` writes, and its tokenizer."""
    tokenizer = byte_bpe(bos=True)
    return tiny_llama(vocab_size=len(tokenizer), hidden_size=WIDTH, seed=seed), tokenizer


def write_gguf(file: Path, *, seed: int = 0, without: str | None = None) -> dict[str, Tensor]:
    """Writes the file, as llama.cpp's converter lays a Llama out.

    Args:
        file: its name.
        seed: of the weights.
        without: a tensor to leave out.

    Returns:
        The weights that the file holds, by transformers' names.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, dequantize, quantize

    model, tokenizer = llama_in_file(seed=seed)
    config: Any = model.config
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(WIDTH // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    parts = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(parts["vocab"], key=parts["vocab"].__getitem__))
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(len(tokenizer))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in parts["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    held: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == without:
            continue
        values = np.asarray(tensor.numpy(), dtype=np.float32)
        held[name] = tensor
        if name == PACKED:
            packed = quantize(values, GGMLQuantizationType.Q8_0)
            held[name] = torch.from_numpy(dequantize(packed, GGMLQuantizationType.Q8_0).copy())
            writer.add_tensor(_name(name), packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(_name(name), _rotated(name, values, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _name(name: str) -> str:
    """GGUF's name of a tensor."""
    known = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, last = name.rpartition(".")
    if module in known:
        return f"{known[module]}.{last}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[inner]}.{last}"


def _rotated(name: str, values: Any, config: Any) -> Any:
    """Rows of queries and keys in the order of llama.cpp, where the two halves of a rotation stand side by side."""
    if "q_proj" in name or "k_proj" in name:
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    return values
