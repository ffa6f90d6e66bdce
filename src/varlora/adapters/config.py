"""What an adapter's configuration says, and what its base model is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from varlora.adapters.tensors import active_adapter, base_model_of, base_module, is_peft_model, unwrapped_model

# What scales an adapter's product B A: two adapters that differ here must not share weights.
_SCALING_FIELDS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


def adapter_config(model: nn.Module) -> dict[str, Any] | None:
    """The active adapter's configuration as PEFT writes it to `adapter_config.json`; None without an adapter.

    Sets are sorted, so equal configurations give equal files.
    """
    peft_model = unwrapped_model(model)
    if not is_peft_model(peft_model):
        return None
    config = peft_model.peft_config[active_adapter(peft_model)].to_dict()
    config["base_model_name_or_path"], _ = base_model_of(peft_model)
    config["inference_mode"] = True
    if config["task_type"] is None:
        base = type(peft_model.get_base_model())
        config["auto_mapping"] = {"base_model_class": base.__name__, "parent_library": base.__module__}
    plain: dict[str, Any] = json.loads(json.dumps(config, default=sorted, allow_nan=False))
    return in_fixed_order(plain)


def saved_in(model: nn.Module, folder: Path) -> Path:
    """Where PEFT's `save_pretrained(folder)` puts the active adapter: "default" into the folder, others below it.

    Example:
        >>> import torch
        >>> saved_in(torch.nn.Linear(2, 1), Path("run")).name
        'run'
    """
    peft_model = unwrapped_model(model)
    if not is_peft_model(peft_model) or active_adapter(peft_model) == "default":
        return folder
    return folder / active_adapter(peft_model)


def in_fixed_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter configuration with those lists sorted that PEFT keeps as sets and writes in any order.

    Example:
        >>> in_fixed_order({"r": 8, "target_modules": ["v_proj", "q_proj"]})
        {'r': 8, 'target_modules': ['q_proj', 'v_proj']}
    """
    unordered = ("target_modules", "exclude_modules")
    return {
        name: sorted(value) if name in unordered and isinstance(value, list) else value
        for name, value in config.items()
    }


def base_loading(model: nn.Module) -> dict[str, str] | None:
    """How a transformers model's weights were loaded: `dtype`, and `quantization` by bitsandbytes; None of any other.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=1)
        >>> base_loading(LlamaForCausalLM(config))
        {'dtype': 'float32'}
    """
    base = base_module(model)
    weights = [p for p in base.parameters() if p.is_floating_point()]
    if not weights or not hasattr(base, "name_or_path"):
        return None
    dtype = max(weights, key=lambda p: p.numel()).dtype  # an adapter's own may be another
    bits = next((bits for bits in ("8bit", "4bit") if getattr(base, f"is_loaded_in_{bits}", False)), None)
    return {"dtype": str(dtype).removeprefix("torch."), **({"quantization": bits} if bits else {})}


def same_scaling(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool:
    """Whether two adapter configurations give the same weights the same effect (rank, alpha, DoRA, ...)."""
    if first is None or second is None:
        return first is second
    return all(first.get(field) == second.get(field) for field in _SCALING_FIELDS)
