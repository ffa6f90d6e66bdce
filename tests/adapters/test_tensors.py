"""Which tensors are read under which keys, and that weights put in for a while are taken out again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from adapted_models import ADAPTED, logits
from models import lora, tiny_llama, token_ids
from varlora.adapters import (
    adapter_config,
    applied,
    applying,
    base_model_of,
    checkpoint_key,
    fixed_tensors,
    load_into,
    reload,
    same_scaling,
    saved_tensors,
    trained_tensors,
    weights,
)
from varlora.adapters import base as fingerprints
from varlora.adapters import tensors as adapters
from varlora.posterior import point_mass_of

adapted = pytest.mark.parametrize("build", ADAPTED.values(), ids=ADAPTED.keys())


def shifted(model: nn.Module, by: float = 1.0) -> dict[str, torch.Tensor]:
    return {key: p.detach() + by for key, p in trained_tensors(model).items()}


# Keys ------------------------------------------------------------------------------------------------------


@adapted
def test_trained_tensors_are_those_that_peft_saves(build: Callable[[], PeftModel], tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    trained = trained_tensors(model)
    assert list(trained) == sorted(saved)
    assert all(torch.equal(trained[key], saved[key]) for key in saved)
    live = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == live


@adapted
def test_checkpoint_keys_from_names_alone_are_pefts(build: Callable[[], PeftModel]) -> None:
    model = build()
    by_name = {checkpoint_key(name): p for name, p in model.named_parameters() if p.requires_grad}
    assert by_name.keys() == trained_tensors(model).keys()
    assert all(by_name[key] is p for key, p in trained_tensors(model).items())


def test_checkpoint_keys_follow_the_adapters_name_and_look_through_wrappers() -> None:
    name = "module._orig_mod.model.default.q_proj.lora_A.my.adapter.weight"
    assert checkpoint_key(name, "my.adapter") == "model.default.q_proj.lora_A.weight"
    assert checkpoint_key(name, None) == "model.default.q_proj.lora_A.my.adapter.weight"


def test_the_adapters_name_is_not_part_of_the_keys() -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]), adapter_name="mine")
    assert list(trained_tensors(model)) == sorted(trained_tensors(lora(tiny_llama(), target_modules=("q_proj",))))


def test_only_the_active_adapter_is_read(llama_lora: PeftModel) -> None:
    llama_lora.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    llama_lora.set_adapter("other")
    assert {p.shape[0] for key, p in trained_tensors(llama_lora).items() if "lora_A" in key} == {2}


def test_a_plain_module_is_keyed_by_parameter_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    assert list(trained_tensors(model)) == ["1.bias", "1.weight"]
    assert fixed_tensors(model) == {}
    assert adapter_config(model) is None


def test_wrappers_are_looked_through(llama_lora: PeftModel) -> None:
    keys = list(trained_tensors(llama_lora))
    assert list(trained_tensors(torch.compile(llama_lora))) == keys
    assert list(trained_tensors(nn.DataParallel(llama_lora))) == keys


def test_frozen_adapter_tensors_are_fixed(llama_lora: PeftModel) -> None:
    assert fixed_tensors(llama_lora) == {}
    for name, p in llama_lora.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    assert all("lora_A" in key for key in fixed_tensors(llama_lora))
    assert len(fixed_tensors(llama_lora)) == len(trained_tensors(llama_lora)) == 4


@adapted
def test_one_search_gives_what_two_do(build: Callable[[], PeftModel]) -> None:
    model = build()
    for p in list(trained_tensors(model).values())[::2]:
        p.requires_grad_(False)
    saved = saved_tensors(model)
    for at_once, alone in ((saved.trained, trained_tensors(model)), (saved.fixed, fixed_tensors(model))):
        assert list(at_once) == list(alone)
        assert all(at_once[key] is alone[key] for key in alone)
    assert list(saved.tensors()) == [*saved.trained, *saved.fixed]


def test_a_posterior_searches_the_model_anew_but_once_for_each_kind_of_key(
    llama_lora: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    search, resized = adapters.live_tensors, adapters.is_resized
    for module in (adapters, fingerprints):
        monkeypatch.setattr(
            module,
            "live_tensors",
            lambda model, *, embeddings=False: (asked.append(embeddings), search(model, embeddings=embeddings))[1],
        )
    for module in (adapters, reload):
        monkeypatch.setattr(module, "is_resized", lambda model: (asked.append("resized"), resized(model))[1])
    q = point_mass_of(llama_lora, method="adamw")
    assert asked == [False, "resized", "auto", True]
    trained_tensors(llama_lora)[min(q.mean)].requires_grad_(False)
    assert list(saved_tensors(llama_lora).fixed) == [min(q.mean)]
    assert list(saved_tensors(llama_lora).trained) == sorted(q.mean)[1:]
    llama_lora.merge_adapter()
    with pytest.raises(ValueError, match="merged into the base weights"):
        point_mass_of(llama_lora, method="adamw")


def test_resized_embeddings_are_kept_as_peft_keeps_them(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")

    def resized() -> nn.Module:
        base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(70, mean_resizing=False)
        return base

    base = resized()
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        layer.weight.data[64:] = 0.5
    model = lora(base)
    q = point_mass_of(model, method="adamw")
    assert saved_tensors(model).resized
    assert set(fixed_tensors(model)) == {
        f"base_model.model.{name}.weight" for name in ("lm_head", "model.embed_tokens")
    }
    again = lora(resized())
    assert not torch.equal(logits(again), logits(model))
    with applied(again, q.point):
        assert torch.equal(logits(again), logits(model))
    with pytest.raises(ValueError, match=r"wrong shape.*resize_token_embeddings\(70\) first"):
        load_into(lora(LlamaForCausalLM.from_pretrained(tmp_path / "base")), q.point)


def test_a_trained_parameter_outside_the_adapter_is_refused(llama_lora: PeftModel) -> None:
    llama_lora.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 trained parameter.*model\.norm\.weight.*modules_to_save"):
        trained_tensors(llama_lora)


def test_transformers_own_adapters_are_refused() -> None:
    model = tiny_llama()
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="get_peft_model"):
        trained_tensors(model)


def test_a_merged_adapter_is_refused_until_it_is_unmerged(llama_lora: PeftModel) -> None:
    values = shifted(llama_lora)
    llama_lora.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into the base weights.*unmerge_adapter"):
        trained_tensors(llama_lora)
    with pytest.raises(ValueError, match="unmerge_adapter"), applied(llama_lora, values):
        pass
    llama_lora.unmerge_adapter()
    with applied(llama_lora, values):
        pass


# Configuration and base model ------------------------------------------------------------------------------


def test_the_configuration_is_what_peft_writes(bert_lora: PeftModel, llama_lora: PeftModel, tmp_path: Path) -> None:
    for number, model in enumerate((bert_lora, llama_lora, lora(tiny_llama()))):
        model.save_pretrained(tmp_path / str(number))
        written = json.loads((tmp_path / str(number) / "adapter_config.json").read_text())
        config = adapter_config(model)
        assert config is not None
        written["target_modules"].sort()
        assert config == written


def test_the_base_model_is_found(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    base = type(tiny_llama()).from_pretrained(tmp_path / "base")
    assert base_model_of(base) == (str(tmp_path / "base"), None)
    assert base_model_of(lora(base, revision="abc")) == (str(tmp_path / "base"), "abc")
    assert base_model_of(nn.Linear(1, 1)) == (None, None)


def test_scaling_is_compared_by_what_scales() -> None:
    config = {"r": 4, "lora_alpha": 8, "peft_version": "1"}
    assert same_scaling(config, {**config, "peft_version": "2"})
    assert not same_scaling(config, {**config, "lora_alpha": 16})
    assert same_scaling(None, None)
    assert not same_scaling(config, None)


# applied ---------------------------------------------------------------------------------------------------


@adapted
def test_applied_computes_with_the_given_tensors_and_restores_every_bit(build: Callable[[], PeftModel]) -> None:
    model, other = build(), build()
    with torch.no_grad():
        for p in trained_tensors(other).values():
            p.add_(0.5)
    before, state = logits(model), {k: t.clone() for k, t in model.state_dict().items()}
    addresses = {key: p.data_ptr() for key, p in trained_tensors(model).items()}
    with applied(model, shifted(model, 0.5)):
        assert torch.equal(logits(model), logits(other))
        assert not torch.equal(logits(model), before)
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())
    assert {key: p.data_ptr() for key, p in trained_tensors(model).items()} == addresses
    assert torch.equal(logits(model), before)


def test_several_sets_of_tensors_need_one_search_of_the_model(
    llama_lora: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, first, second = logits(llama_lora), shifted(llama_lora, 1.0), shifted(llama_lora, 2.0)
    searches: list[nn.Module] = []
    search = weights.live_tensors
    monkeypatch.setattr(weights, "live_tensors", lambda model, **given: (searches.append(model), search(model))[1])
    with applying(llama_lora, first) as apply:
        found = []
        for values in (first, second):
            apply(values)
            found.append(logits(llama_lora))
        key = min(first)
        with pytest.raises(ValueError, match=f"differ in their keys: {re.escape(key)}"):
            apply({k: t for k, t in first.items() if k != key})
        with pytest.raises(ValueError, match=f"differ in their shapes: {re.escape(key)}"):
            apply({**first, key: first[key][:1]})
        assert torch.equal(logits(llama_lora), found[1]), "what was refused has changed nothing"
    assert len(searches) == 1
    assert torch.equal(logits(llama_lora), before)
    for values, expected in zip((first, second), found, strict=True):
        with applied(llama_lora, values):
            assert torch.equal(logits(llama_lora), expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_applied_restores_after_an_exception(llama_lora: PeftModel, error: type[BaseException]) -> None:
    before = logits(llama_lora)
    with pytest.raises(error), applied(llama_lora, shifted(llama_lora)):
        raise error
    assert torch.equal(logits(llama_lora), before)


def test_applied_restores_when_it_fails_halfway_in(llama_lora: PeftModel) -> None:
    before, values = logits(llama_lora), shifted(llama_lora)
    values[max(values)] = values[max(values)].to("meta")
    with pytest.raises((NotImplementedError, RuntimeError)), applied(llama_lora, values):
        pass
    assert torch.equal(logits(llama_lora), before)


def test_an_interrupt_while_restoring_does_not_stop_it(llama_lora: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before, values, copies = logits(llama_lora), shifted(llama_lora), []
    copy = weights._copy

    def interrupted_once(tensors: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> None:
        copies.append(len(targets))
        if len(copies) == 2:  # the first restores half of the tensors
            copy(tensors, dict(list(targets.items())[: len(targets) // 2]))
            raise KeyboardInterrupt
        copy(tensors, targets)

    monkeypatch.setattr(weights, "_copy", interrupted_once)
    with pytest.raises(KeyboardInterrupt), applied(llama_lora, values):
        pass
    assert torch.equal(logits(llama_lora), before)
    assert len(copies) == 3


def test_applied_nests(llama_lora: PeftModel) -> None:
    before = logits(llama_lora)
    with applied(llama_lora, shifted(llama_lora, 1.0)):
        outer = logits(llama_lora)
        with applied(llama_lora, shifted(llama_lora, 2.0)):
            pass
        assert torch.equal(logits(llama_lora), outer)
    assert torch.equal(logits(llama_lora), before)


def test_gradients_are_left_alone_and_training_goes_on(llama_lora: PeftModel) -> None:
    ids = token_ids()

    def gradients() -> dict[str, torch.Tensor]:
        llama_lora.zero_grad()
        llama_lora(input_ids=ids, labels=ids).loss.backward()
        return {key: p.grad.clone() for key, p in trained_tensors(llama_lora).items() if p.grad is not None}

    before = gradients()
    with torch.inference_mode(), applied(llama_lora, shifted(llama_lora)):
        llama_lora(input_ids=ids)
    kept = {key: p.grad for key, p in trained_tensors(llama_lora).items()}
    assert all(torch.equal(kept[key], before[key]) for key in before)
    after = gradients()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p.requires_grad and not p.is_inference() for p in trained_tensors(llama_lora).values())


def test_a_graph_recorded_inside_is_refused_outside(llama_lora: PeftModel) -> None:
    ids = token_ids()
    with applied(llama_lora, shifted(llama_lora)):
        loss = llama_lora(input_ids=ids, labels=ids).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_float32_values_go_into_bfloat16_parameters(llama_lora: PeftModel) -> None:
    llama_lora.to(torch.bfloat16)
    state = {k: t.clone() for k, t in llama_lora.state_dict().items()}
    values = {key: torch.full(p.shape, 1.001) for key, p in trained_tensors(llama_lora).items()}
    with applied(llama_lora, values):
        for p in trained_tensors(llama_lora).values():
            assert p.dtype == torch.bfloat16
            assert torch.equal(p, torch.ones_like(p))
    assert all(torch.equal(t, state[key]) for key, t in llama_lora.state_dict().items())


def test_an_adapter_loaded_for_inference_takes_samples(llama_lora: PeftModel, tmp_path: Path) -> None:
    values = shifted(llama_lora)
    llama_lora.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert trained_tensors(loaded) == {}
    with applied(loaded, values), applied(llama_lora, values):
        assert torch.equal(logits(loaded), logits(llama_lora))
    values.pop(min(values))
    with pytest.raises(ValueError, match="1 missing key"), applied(loaded, values):
        pass


def test_what_does_not_fit_is_named_and_nothing_is_changed(llama_lora: PeftModel) -> None:
    before, values = logits(llama_lora), shifted(llama_lora)
    first, last = min(values), max(values)
    bad = {**values, "stranger": torch.zeros(1), last: values[last][:1]}
    del bad[first]
    with pytest.raises(ValueError) as caught, applied(llama_lora, bad):  # noqa: PT011
        pass
    assert "1 unknown key(s): stranger" in str(caught.value)
    assert f"1 missing key(s): {first}" in str(caught.value)
    assert re.search(rf"1 wrong shape\(s\): {re.escape(last)} is \(1, 4\), the model's is \(8, 4\)", str(caught.value))
    assert torch.equal(logits(llama_lora), before)


def test_load_into_stays(llama_lora: PeftModel) -> None:
    values = shifted(llama_lora)
    load_into(llama_lora, values)
    assert all(torch.equal(p, values[key]) for key, p in trained_tensors(llama_lora).items())
