"""A new start for an adapter, and its dropout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from adapted_models import ADAPTED, logits
from models import lora, tiny_bert_classifier, tiny_llama
from varlora.adapters import (
    dropout_modules,
    dropout_on,
    reset_adapter,
    trained_tensors,
)

# reset_adapter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "dora", "rslora", "embedding", "bare parameters"])
def test_after_a_reset_the_model_computes_what_its_base_does(name: str) -> None:
    model = ADAPTED[name]()
    with model.disable_adapter():
        base = logits(model)
    assert not torch.allclose(logits(model), base, atol=1e-4)
    reset_adapter(model, seed=3)
    torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "dora", "embedding"])
def test_a_reset_is_a_new_draw_of_pefts_start(name: str) -> None:
    model = ADAPTED[name]()
    first: dict[int, dict[str, torch.Tensor]] = {}
    for seed in (3, 4, 3):
        reset_adapter(model, seed=seed)
        drawn = {k: p.detach().clone() for k, p in trained_tensors(model).items() if "lora_A" in k}
        assert all(0 < p.abs().max() <= 16**-0.5 for p in drawn.values())  # uniform within 1 / sqrt(hidden size)
        if seed in first:
            assert all(torch.equal(p, first[seed][key]) for key, p in drawn.items())
        first[seed] = drawn
    assert not any(torch.equal(first[3][key], first[4][key]) for key in first[3])
    assert len({tuple(p.flatten().tolist()) for p in first[3].values()}) == len(first[3]), "each layer has its own"


def test_a_reset_is_pefts_own_under_that_seed(llama_lora: PeftModel) -> None:
    torch.manual_seed(3)
    for module in llama_lora.modules():
        if isinstance(module, LoraLayer):
            module.reset_lora_parameters("default", True)
    expected = {key: p.detach().clone() for key, p in trained_tensors(llama_lora).items()}
    torch.manual_seed(0)
    reset_adapter(lora_again := lora(tiny_llama(), task_type="CAUSAL_LM"), seed=3)
    assert all(torch.equal(p, expected[key]) for key, p in trained_tensors(lora_again).items())


def test_a_gaussian_start_is_drawn_as_a_gaussian() -> None:
    model = lora(tiny_llama(hidden_size=64), init_lora_weights="gaussian")
    reset_adapter(model, seed=0)
    a = torch.cat([p.detach().flatten() for key, p in trained_tensors(model).items() if "lora_A" in key])
    assert abs(a.std().item() - 0.25) < 0.02  # 1/r
    assert a.abs().max() > 0.25 * 2.5


@pytest.mark.parametrize("name", ["classifier", "head", "all biases", "new tokens"])
def test_a_reset_leaves_what_may_be_pre_trained(name: str) -> None:
    model = ADAPTED[name]()
    with torch.no_grad():
        for p in trained_tensors(model).values():
            p.add_(0.5)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    reset_adapter(model, seed=3)
    changed = {key for key, t in model.state_dict().items() if not torch.equal(t, before[key])}
    assert changed
    assert all("lora_" in key for key in changed)


def test_a_reset_leaves_parameters_random_state_and_dtype() -> None:
    model = ADAPTED["dora"]().to(torch.bfloat16)
    before = {name: (id(p), p.data_ptr(), p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    reset_adapter(model, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    after = {name: (id(p), p.data_ptr(), p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert after == before


def test_the_draw_is_made_in_float32_on_the_cpu_wherever_the_parameters_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, places = lora(tiny_llama()).to(torch.bfloat16), set()
    reset = LoraLayer.reset_lora_parameters

    def watched(layer: LoraLayer, adapter: str, start: object) -> None:
        places.update((p.device.type, p.dtype) for p in (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight))
        reset(layer, adapter, start)

    monkeypatch.setattr(LoraLayer, "reset_lora_parameters", watched)
    reset_adapter(model, seed=3)
    assert places == {("cpu", torch.float32)}
    assert {p.dtype for p in trained_tensors(model).values()} == {torch.bfloat16}


def test_only_the_active_adapter_is_reset(llama_lora: PeftModel) -> None:
    llama_lora.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    llama_lora.set_adapter("other")
    before = {name: p.detach().clone() for name, p in llama_lora.named_parameters()}
    reset_adapter(llama_lora, seed=3)
    changed = {name for name, p in llama_lora.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".other." in name for name in changed)


@pytest.mark.gpu
def test_a_reset_gives_the_same_values_on_a_gpu() -> None:
    models = [ADAPTED["dora"](), ADAPTED["dora"]().to("cuda")]
    for model in models:
        reset_adapter(model, seed=3)
    first, second = (trained_tensors(model) for model in models)
    assert all(second[key].device.type == "cuda" for key in first)
    for key, p in first.items():
        exact = "magnitude" not in key
        torch.testing.assert_close(second[key].cpu(), p, atol=0 if exact else 1e-5, rtol=0 if exact else 1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(2, 2), "no LoRA adapter.*get_peft_model"),
        (lambda: get_peft_model(tiny_llama(), IA3Config(task_type="CAUSAL_LM")), "adapter is by IA3Config; only LoRA"),
        (lambda: lora(tiny_llama(), init_lora_weights="olora"), "init_lora_weights='olora' is no random start"),
        (lambda: lora(tiny_llama(), init_lora_weights=False), "init_lora_weights=False is no random start"),
    ],
)
def test_what_has_no_random_start_is_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reset_adapter(build(), seed=0)


def test_a_merged_adapter_is_not_reset(llama_lora: PeftModel) -> None:
    llama_lora.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        reset_adapter(llama_lora, seed=0)


# Dropout ---------------------------------------------------------------------------------------------------


def test_the_adapters_dropout_is_found_and_no_other() -> None:
    model = lora(tiny_bert_classifier(), target_modules=("query", "word_embeddings"), lora_dropout=0.2)
    found = dropout_modules(model)
    assert [module.p for module in found.values()] == [0.2, 0.2]
    assert all(name.endswith("query.lora_dropout.default") for name in found)
    named = dict(model.named_modules())
    assert all(named[name] is module for name, module in found.items())


def test_without_dropout_or_an_adapter_none_is_found(llama_lora: PeftModel) -> None:
    assert dropout_modules(llama_lora) == {}
    assert dropout_modules(nn.Dropout(0.5)) == {}
    with pytest.raises(ValueError, match="Train with lora_dropout > 0"), dropout_on(llama_lora, 0.1):
        pass


def test_only_the_adapters_dropout_is_switched_on() -> None:
    model = lora(tiny_bert_classifier(), target_modules=("query",), lora_dropout=0.2).eval()
    with dropout_on(model, 0.4):
        on = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.training}
        assert on == dropout_modules(model).keys()
        assert all(module.p == 0.4 for module in dropout_modules(model).values())
        assert not torch.equal(logits(model), logits(model))
    assert not any(module.training for module in model.modules())
    assert torch.equal(logits(model), logits(model))


def test_a_merged_adapter_has_no_dropout_to_switch_on() -> None:
    model = lora(tiny_llama(), lora_dropout=0.2)
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"), dropout_on(model, 0.2):
        pass
