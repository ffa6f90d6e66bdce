"""The frozen weights in 8 or 4 bit, by bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from varlora.runs.config import RunConfig


def quantization_config(config: RunConfig) -> BitsAndBytesConfig | None:
    """How the frozen weights are to be loaded; None as they are.

    8 bit: LLM.int8() with its threshold of 6. 4 bit: NF4 with doubly quantized constants, computed in `dtype`, or in
    bfloat16 where that is "auto". Without a CUDA GPU bitsandbytes computes on the processor.

    Args:
        config: the settings.

    Raises:
        ValueError: bitsandbytes is not installed.

    Example:
        >>> quantization_config(RunConfig(model_name_or_path="m", task="arc_easy", output_dir="o")) is None
        True

    Source:
        Dettmers et al. 2022, LLM.int8() (arXiv 2208.07339); Dettmers et al. 2023, QLoRA (arXiv 2305.14314).
    """
    if config.quantization == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantization is {config.quantization!r}, which needs bitsandbytes: pip install 'varlora[bitsandbytes]'."
        )
    options: dict[str, Any] = {"load_in_8bit": True}
    if config.quantization == "4bit":
        compute = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
        options = {"load_in_4bit": True, "bnb_4bit_compute_dtype": compute}
        options |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]
