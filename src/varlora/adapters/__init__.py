"""The adapter on a model: the only room that knows PEFT's names.

`tensors` finds what trains, by the keys of PEFT's files, and `weights` writes it; `config` says what an adapter and its
base are; `lora` knows the layers of a LoRA adapter; `reload` what no file of PEFT's brings back; `foreign` what a
configuration may not say; `base` tells one base model from another.
"""

from varlora.adapters.base import base_differences, base_fingerprint, check_base
from varlora.adapters.config import adapter_config, base_loading, in_fixed_order, same_scaling, saved_in
from varlora.adapters.foreign import refuse_foreign, refuse_large
from varlora.adapters.lora import dropout_modules, dropout_on, factor_keys, linear_factors, reset_adapter
from varlora.adapters.reload import check_trainable, refuse_unreloadable
from varlora.adapters.tensors import (
    SavedTensors,
    base_model_of,
    checkpoint_key,
    fixed_tensors,
    is_base_embedding,
    saved_tensors,
    trained_tensors,
    unwrapped_model,
)
from varlora.adapters.weights import applied, applying, load_into

__all__ = [
    "SavedTensors",
    "adapter_config",
    "applied",
    "applying",
    "base_differences",
    "base_fingerprint",
    "base_loading",
    "base_model_of",
    "check_base",
    "check_trainable",
    "checkpoint_key",
    "dropout_modules",
    "dropout_on",
    "factor_keys",
    "fixed_tensors",
    "in_fixed_order",
    "is_base_embedding",
    "linear_factors",
    "load_into",
    "refuse_foreign",
    "refuse_large",
    "refuse_unreloadable",
    "reset_adapter",
    "same_scaling",
    "saved_in",
    "saved_tensors",
    "trained_tensors",
    "unwrapped_model",
]
