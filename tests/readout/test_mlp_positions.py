"""MLPs of decoders that compute what is read alone: the whole model's logits and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from readout.test_frozen_layers_decoders import CONFIGS, LENGTHS, adapted, rows
from varlora.readout.answer_logits import answer_logits, last_positions
from varlora.readout.frozen_layers import cached_frozen_layers

TOKENS = (3, 9, 12)


def adapted_everywhere(settings: PretrainedConfig) -> PeftModel:
    """The upper two layers, their MLPs included."""
    torch.manual_seed(0)
    modules = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    options = LoraConfig(target_modules=modules, layers_to_transform=[2, 3], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_config(copy.deepcopy(settings)), options)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def positions_of(model: PeftModel) -> dict[int, list[int]]:
    """By layer, a list to which every pass through its MLP's weights adds its number of positions."""
    layers: Any = model.get_base_model().model.layers  # type: ignore[union-attr]
    counts: dict[int, list[int]] = {number: [] for number in range(len(layers))}
    for number, layer in enumerate(layers):
        layer.mlp.up_proj.register_forward_pre_hook(
            lambda _, args, here=counts[number]: here.append(args[0].shape[:-1].numel())
        )
    return counts


def gradients_of(model: PeftModel, logits: Tensor) -> Tensor:
    model.zero_grad()
    nn.functional.cross_entropy(logits, torch.arange(len(logits)) % 3).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_every_position(name: str, side: str) -> None:
    model, batch = adapted(CONFIGS[name]), rows(side)
    whole = model(**batch).logits
    last = last_positions(batch["attention_mask"])
    expected = whole[torch.arange(len(last)), last][:, list(TOKENS)]
    gradient = gradients_of(model, expected)
    found = answer_logits(model, batch, TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients_of(model, found), gradient, rtol=0, atol=1e-5)
    with cached_frozen_layers(model):
        counts = positions_of(model)
        found = answer_logits(model, batch, TOKENS)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradients_of(model, found), gradient, rtol=0, atol=1e-5)
        assert counts[2] == [sum(LENGTHS)], "of five rows of up to nine tokens"
        assert counts[3] == [len(LENGTHS)]
        own = batch["attention_mask"].bool()
        torch.testing.assert_close(model(**batch).logits[own], whole[own], rtol=0, atol=1e-5)
        assert counts[3] == [len(LENGTHS), sum(LENGTHS)], "of every token's logits, those of every token"
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_an_adapted_mlp_computes_every_position() -> None:
    """Its dropout, noise and per-example gradients are those of a batch of rows."""
    model, batch = adapted_everywhere(CONFIGS["llama"]).train(), rows("left")
    answer_logits(model, batch, TOKENS)  # what it checks once
    counts = positions_of(model)
    found = []
    for cached in (False, True):
        torch.manual_seed(1)
        if cached:
            with cached_frozen_layers(model):
                found.append(answer_logits(model, batch, TOKENS))
        else:
            found.append(answer_logits(model, batch, TOKENS))
    assert counts[2] == counts[3] == [45, 45]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_computed_again_in_backward_compute_every_position(reentrant: bool) -> None:
    gradients, positions = [], []
    for checkpointing in (False, True):
        model = adapted().train()
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.get_base_model().enable_input_require_grads()
        with cached_frozen_layers(model):
            answer_logits(model, rows("left"), TOKENS)
            counts = positions_of(model)
            torch.manual_seed(1)
            one = answer_logits(model, rows("left"), TOKENS)
            other = answer_logits(model, rows("left", [4, 1], padding=2), TOKENS)
            both = nn.functional.cross_entropy(torch.cat([one, other]), torch.arange(7) % 3)
            model.zero_grad()
            both.backward()
        positions.append(counts[3])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert positions == [[5, 2], [45, 22, 22, 45]]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_copy_computes_every_position() -> None:
    model, batch = adapted(), rows("left")
    expected = model(**batch).logits
    with cached_frozen_layers(model):
        model(**batch)
        copied = copy.deepcopy(model)
        counts = positions_of(copied)
        assert torch.equal(copied(**batch).logits, expected)
    assert counts[2] == [45]
