"""Cached frozen layers of decoders: the whole model's numbers, whatever is padded and wherever draws come from."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from small_runs import config, save_model, write_rows
from tiny_runs import uneven_films
from varlora.posterior import DiagonalGaussian, PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.readout.answer_logits import answer_logits
from varlora.readout.frozen_layers import cached_frozen_layers
from varlora.runs.config import RunConfig
from varlora.runs.folder import read_run
from varlora.runs.predict import predict_split
from varlora.runs.run import method_of, run, train
from varlora.runs.setting import load_setting, reload_setting

SIZES: Mapping[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW: Mapping[str, Any] = {"sliding_window": 3}
KINDS: Mapping[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 2}
CONFIGS: Mapping[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, **WINDOW),
    "ministral": MinistralConfig(**SIZES, **WINDOW, **KINDS, head_dim=8),
    "qwen2": Qwen2Config(**SIZES, **WINDOW, **KINDS, use_sliding_window=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, **WINDOW, **KINDS, head_dim=8, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**SIZES, **WINDOW, **KINDS, head_dim=8, query_pre_attn_scalar=8),
}
LENGTHS = (9, 4, 6, 9, 2)


def adapted(settings: PretrainedConfig = CONFIGS["llama"]) -> PeftModel:
    """Four layers, of which the upper two are adapted."""
    torch.manual_seed(0)
    options = LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[2, 3], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_config(copy.deepcopy(settings)), options)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def rows(side: str, order: list[int] | None = None, padding: int = 0) -> dict[str, Tensor]:
    """Rows of different lengths, some of them more padded than they need be."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 64, (length,), generator=generator) for length in LENGTHS]
    width = max(LENGTHS) + padding
    pad = [(0, width - n) if side == "right" else (width - n, 0) for n in LENGTHS]
    ids = torch.stack([nn.functional.pad(text, by) for text, by in zip(texts, pad, strict=True)])
    mask = torch.stack([nn.functional.pad(torch.ones_like(t), by) for t, by in zip(texts, pad, strict=True)])
    every = order if order is not None else list(range(len(LENGTHS)))
    return {"input_ids": ids[every], "attention_mask": mask[every]}


def calls_of(model: PeftModel, layer: int = 1) -> list[int]:
    """A list to which every pass through a layer adds its number of rows."""
    computed: list[int] = []
    inner: Any = model.get_base_model()
    inner.model.layers[layer].self_attn.q_proj.register_forward_pre_hook(lambda _, args: computed.append(len(args[0])))
    return computed


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_the_whole_model(name: str, side: str) -> None:
    model = adapted(CONFIGS[name])
    batches = [rows(side), rows(side, [4, 1]), rows(side, [2, 0, 2], padding=3)]
    expected = [model(**batch).logits for batch in batches]
    computed = calls_of(model)
    with cached_frozen_layers(model) as layers:
        assert layers == 2
        found = [model(**batch).logits for batch in batches]
    assert computed == [5]
    own = [batch["attention_mask"].bool() for batch in batches]
    for one, other, mask in zip(found, expected, own, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one[mask], other[mask], rtol=0, atol=1e-5)
    assert torch.equal(model(**batches[0]).logits, expected[0])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_what_stands_in_the_padding_leaks_nowhere(side: str) -> None:
    model, batch = adapted(), rows(side)
    other = {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"].bool(), 63)}
    own = batch["attention_mask"].bool()
    with cached_frozen_layers(model):
        expected = model(**batch).logits[own]
    computed = calls_of(model)
    with cached_frozen_layers(model):
        assert torch.equal(model(**other).logits[own], expected)
        assert torch.equal(model(**batch).logits[own], expected)
    assert computed == [5], "a row is known by its own tokens"


@torch.no_grad()
def test_rows_are_the_same_wherever_their_positions_begin() -> None:
    model, batch = adapted(), rows("left")
    counted = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = model(**batch, position_ids=counted).logits
    own = batch["attention_mask"].bool()
    computed = calls_of(model)
    with cached_frozen_layers(model):
        for positions in (counted, counted + 7, None):
            given = {} if positions is None else {"position_ids": positions}
            torch.testing.assert_close(model(**batch, **given).logits[own], expected[own], rtol=0, atol=1e-5)
    assert computed == [5]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_whole_model(checkpointing: bool) -> None:
    gradients = []
    for cached in (False, True):
        model = adapted().train()
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": True})
            model.get_base_model().enable_input_require_grads()
        batch = rows("left")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        torch.manual_seed(1)  # of the adapter's dropout
        if cached:
            with cached_frozen_layers(model):
                model(**batch, labels=labels, num_items_in_batch=torch.tensor(4)).loss.backward()
        else:
            model(**batch, labels=labels, num_items_in_batch=torch.tensor(4)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


@torch.no_grad()
def test_generation_is_the_whole_models() -> None:
    model, batch = adapted(), rows("left")
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**batch, **options)
    with cached_frozen_layers(model):
        before = model(**batch)
        assert before.past_key_values is None, "without the lower layers' keys nothing could be written on from it"
        assert torch.equal(model.generate(**batch, **options), expected)
        assert len(model(**batch, use_cache=True).past_key_values) == 4
        assert torch.equal(model(**batch).logits, before.logits)


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "a hole": ({"attention_mask": torch.tensor([[1, 0, 1]])}, "not in between"),
    "an empty row": ({"attention_mask": torch.tensor([[0, 0, 0]])}, "at least one token"),
    "packed rows": ({"position_ids": torch.tensor([[0, 1, 0]])}, "positions that count up by one"),
    "a mask of its own": ({"attention_mask": torch.ones(1, 1, 3, 3)}, r"an attention_mask with an entry for each"),
    "states": ({"output_hidden_states": True}, "no hidden_states"),
    "other inputs": ({"cu_seq_lens_q": torch.tensor([0, 3])}, r"it is called with cu_seq_lens_q \(2,\), input_ids"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_rows_that_cannot_be_known_by_their_tokens_are_refused(given: dict[str, Any], message: str) -> None:
    model = adapted()
    with cached_frozen_layers(model), pytest.raises(ValueError, match=message):
        model(input_ids=torch.tensor([[5, 6, 7]]), **given)
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_other_families_are_refused_with_what_is_supported() -> None:
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    model = AutoModelForCausalLM.from_config(GPTNeoXConfig(num_hidden_layers=2, **sizes))
    with pytest.raises(ValueError, match=r"Llama, Ministral, Mistral, Qwen2, Qwen3, and .* GPTNeoXForCausalLM, is"):
        with cached_frozen_layers(model):
            pass


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_batch_are_refused(kind: str) -> None:
    model = adapted()
    scaling = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    model.get_base_model().model.config.rope_parameters = scaling  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=rf"\('{kind}'\) change with its longest row"):
        with cached_frozen_layers(model):
            pass


def test_states_beyond_the_bound_are_read_from_files_which_are_removed(tmp_path: Path) -> None:
    model, batch = adapted(), rows("left")
    own = batch["attention_mask"].bool()
    expected = model(**batch).logits
    a_token = 16 * 4
    with cached_frozen_layers(model, memory=5 * a_token / 2**30, folder=tmp_path):
        found = [model(**rows("left", order)).logits for order in ([0, 1], [2, 3, 4], [0, 1, 2, 3, 4])]
        files = list(tmp_path.rglob("*.safetensors"))
        assert sum(file.stat().st_size for file in files) >= (sum(LENGTHS) - 5) * a_token
    torch.testing.assert_close(found[-1][own], expected[own], rtol=0, atol=1e-5)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three layers without dropout."""
    folder = tmp_path_factory.mktemp("llama")
    return save_model(folder, layers=3)


def settings_of(folder: Path, model: str, **options: Any) -> RunConfig:
    folder.mkdir(parents=True)
    given = {"method": "ivon", "held_out": "validation", "max_steps": 12, "per_device_train_batch_size": 4}
    data = {"train_file": write_rows(folder / "uneven.jsonl", uneven_films(32))}
    adapted = {"lora_layers": "top:1", "lora_target_modules": "v_proj,down_proj"}
    return config(folder, model, **{**data, **adapted, **given, **options})


@pytest.fixture(scope="module")
def finished(llama: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A steered run whose lower two layers were computed once for each row."""
    settings = settings_of(tmp_path_factory.mktemp("runs") / "cached", llama, cache_frozen_layers=True)
    run(settings, progress=False)
    return Path(settings.output_dir)


def test_a_steered_run_gives_the_posterior_that_it_gives_without(finished: Path, llama: str, tmp_path: Path) -> None:
    cached = read_run(finished)
    settings = settings_of(tmp_path / "whole", llama)
    whole = train(load_setting(settings), method_of(settings), checkpoints=tmp_path / "there", progress=False).posterior
    assert cached.posterior.meta.ess == pytest.approx(whole.meta.ess, rel=1e-3)
    for key, mean in whole.point.items():
        assert "layers.2." in key
        torch.testing.assert_close(cached.posterior.point[key], mean, rtol=1e-4, atol=1e-5)


def test_draws_share_the_lower_layers(finished: Path) -> None:
    """Of a finished run, too: ten draws pass every row through the lower layers once, with and without the cache."""
    there = read_run(finished)
    assert isinstance(there.posterior, DiagonalGaussian)
    found, calls = [], []
    for cached in (False, True):
        settings = replace(there.config, cache_frozen_layers=cached)
        setting = reload_setting(replace(there, config=settings))
        assert isinstance(setting.model, PeftModel)
        answer_logits(
            setting.model, next(iter(setting.batches(setting.encoded("test")))), (3, 4)
        )  # what it checks once
        computed = calls_of(setting.model)
        prediction = predict_split(setting, there.posterior, "test", PredictionConfig(samples=10))
        assert isinstance(prediction, Prediction)
        found.append(prediction.log_probs)
        calls.append(sum(computed))
    texts = {tuple(ids) for ids in setting.encoded("test")["input_ids"]}
    assert calls[0] == 24 + 3 * 2, "and two rows, by which draws as rows are compared with two single draws"
    assert len(texts) <= calls[1] <= 24
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert found[0].std(1).max() > 1e-3


def test_a_run_is_the_same_whoever_has_computed_the_states(llama: str, tmp_path: Path) -> None:
    there = tmp_path / "states"
    runs, files = [], []
    for name in ("first", "second"):
        options = {"cache_frozen_layers": True, "frozen_layers_dir": str(there), "max_steps": 4}
        settings = settings_of(tmp_path / name, llama, **options)
        run(settings, progress=False)
        runs.append(read_run(Path(settings.output_dir)))
        files.append({file.name: file.stat().st_mtime_ns for file in there.rglob("*.safetensors")})
    assert files[0]
    assert files[1] == files[0], "nothing was computed that was known"
    assert all(torch.equal(mean, runs[0].posterior.point[key]) for key, mean in runs[1].posterior.point.items())
    shutil.rmtree(there)
    setting = reload_setting(runs[0])
    for mode in ("mean", "samples"):
        own = runs[0].prediction("test", mode)
        assert torch.equal(own.log_probs, runs[1].prediction("test", mode).log_probs)
        again = predict_split(setting, runs[0].posterior, "test", PredictionConfig(mode=mode))
        assert isinstance(again, Prediction)
        assert torch.equal(again.log_probs, own.log_probs)
    assert not there.exists(), "predicting with a run makes no folder"


def test_a_model_that_is_adapted_everywhere_is_refused_before_it_trains(llama: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "all", llama, cache_frozen_layers=True, lora_layers="top:3")
    with pytest.raises(ValueError, match=r"Adapt upper layers only \(lora_layers, lora_target_modules\)"):
        run(settings, progress=False)
