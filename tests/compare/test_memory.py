"""Memory before a run: what is counted agrees with the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig

from varlora.compare import memory
from varlora.compare.content import local_model
from varlora.compare.memory import Shape, memory_of, shape_of
from varlora.demo.data import write_task
from varlora.runs import RunConfig, load_setting

CONFIG = RunConfig(
    model_name_or_path=local_model("embedded"),
    task="arc_easy",
    output_dir="-",
    lora_r=4,
    lora_target_modules="all-linear",
    method="adamw",
)


def test_parameters_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    files = write_task(tmp_path, 0, train=4, validation=2, test=2)
    config = replace(CONFIG, task=None, train_file=str(files["train"]), test_file=str(files["test"]))
    model = load_setting(config).model
    base = AutoModelForCausalLM.from_pretrained(config.model_name_or_path)
    shape = shape_of(config)
    assert shape.parameters == sum(p.numel() for p in base.parameters())
    assert shape.adapter == sum(p.numel() for p in model.parameters() if p.requires_grad)
    linear = {name: m.weight.numel() for name, m in base.named_modules() if isinstance(m, nn.Linear)}
    assert shape.matrices == sum(size for name, size in linear.items() if name != "lm_head")
    text = base.config
    assert (shape.hidden, shape.layers, shape.vocabulary) == (
        text.hidden_size,
        text.num_hidden_layers,
        text.vocab_size,
    )
    assert (shape.bytes_each, shape.causal) == (next(base.parameters()).element_size(), True)


def test_an_encoder_is_counted_too(tmp_path: Path) -> None:
    BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(tmp_path)
    found = shape_of(
        replace(CONFIG, model_name_or_path=str(tmp_path), model_class="encoder", lora_target_modules="query,value")
    )
    # two matrices of rank 4 for each of two modules in each of two layers, and the new head, which trains
    assert found.adapter == 2 * 2 * (4 * 16 + 16 * 4) + (16 * 2 + 2)
    assert not found.causal


def test_a_model_of_billions_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(tmp_path)
    config = replace(CONFIG, model_name_or_path=str(tmp_path), lora_r=8, lora_target_modules="q_proj,v_proj")
    shape = shape_of(config)
    assert shape.parameters == 3_212_749_824  # what meta-llama/Llama-3.2-3B has
    assert shape.adapter == 28 * 8 * (3072 + 3072 + 3072 + 1024)
    found = memory_of(config, shape, tokens=100)
    assert found.frozen == 2 * shape.parameters
    assert found.adapter == 16 * shape.adapter
    assert found.total == found.frozen + found.adapter + found.activations + found.logits


SHAPE = Shape(parameters=120, matrices=100, adapter=10, hidden=7, layers=3, vocabulary=1000, bytes_each=2, causal=True)


def test_what_a_setting_does_to_it() -> None:
    base = memory_of(CONFIG, SHAPE, tokens=5)
    assert (base.frozen, base.adapter) == (240, 10 * 4 * (1 + 1 + 2))
    assert base.logits == CONFIG.per_device_train_batch_size * 1000 * 8
    assert base.activations == 34 * 8 * 5 * 7 * 3

    def changed(**options: object) -> memory.Memory:
        return memory_of(replace(CONFIG, **options), SHAPE, tokens=5)  # type: ignore[arg-type]

    assert changed(quantization="8bit").frozen == 100 + 20 * 4
    assert changed(quantization="4bit").frozen == 50 + 20 * 4
    assert changed(method="ivon").adapter == 10 * 4 * (1 + 1 + 6)
    assert changed(gradient_checkpointing=True).activations == 34 * 280 + 2 * 280 * 3
    assert changed(per_device_train_batch_size=16).activations == 2 * base.activations
    wide = memory_of(CONFIG, replace(SHAPE, bytes_each=4), tokens=5)
    assert (wide.frozen, wide.activations) == (480, 2 * base.activations)
    assert memory_of(CONFIG, replace(SHAPE, causal=False), tokens=5).logits == 8 * 8


@pytest.mark.parametrize(("dtype", "size"), [("auto", 2), ("float32", 4), ("bfloat16", 2)])
def test_auto_is_the_data_type_that_the_configuration_says(tmp_path: Path, dtype: str, size: int) -> None:
    LlamaConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        architectures=["LlamaForCausalLM"],
        dtype=torch.bfloat16,
    ).save_pretrained(tmp_path)
    assert shape_of(replace(CONFIG, model_name_or_path=str(tmp_path), dtype=dtype)).bytes_each == size  # type: ignore[arg-type]
