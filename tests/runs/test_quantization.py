"""Frozen weights in 8 or 4 bit: how they are asked for, and where they are refused."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from models import tiny_llama
from varlora.runs import load_model
from varlora.runs.config import RunConfig
from varlora.runs.quantization import quantization_config


def config(**options: Any) -> RunConfig:
    return RunConfig(model_name_or_path="m", task="arc_easy", output_dir="-", **options)


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_nothing_is_quantized_unless_it_is_asked_for() -> None:
    assert quantization_config(config()) is None


def test_without_bitsandbytes_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(ValueError, match=r"pip install 'varlora\[bitsandbytes\]'"):
        quantization_config(config(quantization="8bit"))


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="quantization is '2bit'; it must be one of 'none', '8bit', '4bit'"):
        config(quantization="2bit")


def test_what_transformers_is_asked_for(bitsandbytes: None) -> None:
    eight = quantization_config(config(quantization="8bit"))
    assert eight is not None
    assert (eight.load_in_8bit, eight.load_in_4bit, eight.llm_int8_threshold) == (True, False, 6.0)
    for dtype, compute in (("auto", torch.bfloat16), ("float16", torch.float16)):
        four = quantization_config(config(quantization="4bit", dtype=dtype))
        assert four is not None
        assert (four.load_in_4bit, four.load_in_8bit) == (True, False)
        assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", True)
        assert four.bnb_4bit_compute_dtype is compute


def test_the_loader_gets_it_and_the_model_is_prepared(bitsandbytes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(name: str, **options: Any) -> Any:
        asked.update(options)
        return tiny_llama().to(torch.float16), {"missing_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    model, _ = load_model.load_base_model(config(quantization="8bit"), "causal", ())
    assert asked["quantization_config"].load_in_8bit
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # norms and embeddings, as PEFT advises
    asked.clear()
    model, _ = load_model.load_base_model(config(), "causal", ())
    assert "quantization_config" not in asked
    assert {p.dtype for p in model.parameters()} == {torch.float16}
