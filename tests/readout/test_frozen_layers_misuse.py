"""Cached frozen layers under IVON's noise, under other hooks, and asked for what they do not have."""

from __future__ import annotations

import copy
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from models import tiny_bert_classifier, token_ids
from varlora import IVON, NoiseController
from varlora.readout.frozen_layers import cached_frozen_layers


def adapted() -> PeftModel:
    """Three layers without dropout, of which the uppermost and the head train."""
    model = tiny_bert_classifier(layers=3)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(1)
    options = LoraConfig(r=4, target_modules=["query", "value"], layers_to_transform=[2], task_type="SEQ_CLS")
    found = get_peft_model(model, options)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return found


def bert_of(model: PeftModel) -> Any:
    base = model.get_base_model()
    assert isinstance(base, BertForSequenceClassification)
    return base.bert


def batch(rows: int = 4) -> dict[str, Tensor]:
    ids = token_ids(rows=rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(rows) % 3}


def trained(*, cached: bool, noise_first: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the mean and at an evaluation draw, and the weights, after three steps of IVON."""
    model = adapted()
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=1e-2, ess=500.0, hess_init=0.5)
    noise = NoiseController(model, optimizer, seed=7) if noise_first else None

    def steps() -> tuple[Tensor, Tensor]:
        controller = noise if noise is not None else NoiseController(model, optimizer, seed=7)
        model.train()
        for _ in range(3):
            model(**batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            at_mean = model(**batch()).logits
            with controller.evaluation_draw(0):
                sampled = model(**batch()).logits
        controller.detach()
        with torch.no_grad():
            assert torch.equal(model(**batch()).logits, at_mean)
        return at_mean, sampled

    if cached:
        with cached_frozen_layers(model):
            at_mean, sampled = steps()
    else:
        at_mean, sampled = steps()
    assert all("forward" not in module.__dict__ for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(**batch()).logits, at_mean, rtol=0, atol=1e-6)
    return at_mean, sampled, torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("noise_first", [False, True])
def test_noise_is_that_of_the_whole_model_whoever_came_first(noise_first: bool) -> None:
    found, expected = trained(cached=True, noise_first=noise_first), trained(cached=False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_the_noise_may_come_and_go_while_layers_are_cached() -> None:
    model = adapted()
    expected = model(**batch()).logits
    computed: list[int] = []
    bert_of(model).encoder.layer[0].attention.register_forward_pre_hook(lambda _, args: computed.append(len(args[0])))
    with cached_frozen_layers(model):
        for _ in range(2):
            optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=1e-2, ess=1e6, hess_init=1.0)
            noise = NoiseController(model, optimizer)
            assert not torch.equal(model.train()(**batch()).logits, expected)
            noise.detach()
            torch.testing.assert_close(model.eval()(**batch()).logits, expected, rtol=0, atol=1e-6)
    assert computed == [4]


@pytest.mark.parametrize("kind", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_exception_gives_the_model_back(kind: BaseException) -> None:
    model = adapted()
    expected = model(**batch()).logits
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    with pytest.raises(type(kind)):  # noqa: PT012
        with cached_frozen_layers(model):
            model(**batch())
            raise kind
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(model(**batch()).logits, expected)


def test_an_exception_within_the_lower_layers_does_too() -> None:
    model = adapted().train()
    modes = [module.training for module in model.modules()]

    def fails(module: nn.Module, args: Any) -> None:
        raise RuntimeError("out of memory")

    with cached_frozen_layers(model):
        hook = bert_of(model).encoder.layer[1].attention.register_forward_pre_hook(fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**batch())
        hook.remove()
        assert [module.training for module in model.modules()] == modes
        found = model.eval()(**batch()).logits
    torch.testing.assert_close(found, model(**batch()).logits, rtol=0, atol=1e-6)


def test_a_forward_that_was_there_before_is_there_after() -> None:
    """As accelerate's, which brings a layer to its device."""
    model = adapted()
    calls: list[int] = []
    layer = bert_of(model).encoder.layer[0]
    inner = layer.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    layer.forward = counted
    with cached_frozen_layers(model):
        model(**batch())
        model(**batch())
        assert calls == [1]
    assert layer.forward is counted
    model(**batch())
    assert calls == [1, 1]


def test_states_have_no_graph_and_go_with_the_block() -> None:
    model = adapted()
    seen: list[Tensor] = []
    first_trained = bert_of(model).encoder.layer[2]
    with cached_frozen_layers(model):
        model.train()(**batch()).loss.backward()
        first_trained.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(**batch())
        [states] = seen
        assert not states.requires_grad
        assert states.device == model.device
        reference = weakref.ref(states)
        seen.clear()
    del states
    assert reference() is None


def test_states_of_inference_mode_serve_training() -> None:
    model = adapted()
    with cached_frozen_layers(model):
        with torch.inference_mode():
            model(**batch())
        model.train()(**batch()).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("by_config", [False, True])
def test_what_is_not_cached_is_not_given(name: str, by_config: bool) -> None:
    model = adapted()
    model.get_base_model().set_attn_implementation("eager")
    with cached_frozen_layers(model):
        if by_config:
            setattr(model.get_base_model().config, name, True)
        with pytest.raises(ValueError, match=f"leave {name} out"):
            model(**batch(), **({} if by_config else {name: True}))


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"inputs_embeds": torch.zeros(2, 6, 16)}, r"inputs_embeds \(2, 6, 16\)"),
        ({"input_ids": token_ids(), "attention_mask": torch.ones(2, 1, 6, 6)}, r"attention_mask \(2, 1, 6, 6\)"),
        ({"input_ids": token_ids(), "position_ids": torch.arange(6)[None]}, r"position_ids \(1, 6\)"),
    ],
)
def test_inputs_that_rows_cannot_be_looked_up_by_are_refused(inputs: Any, found: str) -> None:
    model = adapted()
    with cached_frozen_layers(model):
        with pytest.raises(ValueError, match=f"the encoder is called with .*{found}"):
            model(**inputs)


def test_other_positions_are_other_rows() -> None:
    model = adapted()
    ids = token_ids()
    positions = [torch.arange(6).expand(2, 6), torch.arange(6).flip(0).expand(2, 6)]
    expected = [model(input_ids=ids, position_ids=p).logits for p in positions]
    with cached_frozen_layers(model):
        for p, logits in zip(positions, expected, strict=True):
            torch.testing.assert_close(model(input_ids=ids, position_ids=p).logits, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_batches_in_one_backward_pass_are_recomputed_each_from_its_own_states(reentrant: bool) -> None:
    gradients = []
    for cached in (False, True):
        model = adapted()
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.get_base_model().enable_input_require_grads()
        model.train()
        with cached_frozen_layers(model) if cached else nullcontext():
            other = {**batch(), "input_ids": token_ids(rows=4, seed=5)}
            (model(**batch()).loss + model(**other).loss).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_copy_computes_by_itself() -> None:
    model = adapted()
    other = {"input_ids": token_ids(rows=4, seed=5)}
    expected = model(**other).logits
    with cached_frozen_layers(model):
        model(**batch())
        copied = copy.deepcopy(model)
        assert torch.equal(copied(**other).logits, expected)
        torch.testing.assert_close(model(**other).logits, expected, rtol=0, atol=1e-6)
        with torch.no_grad():
            next(bert_of(copied).encoder.layer[0].parameters()).zero_()
        assert not torch.allclose(copied(**other).logits, expected, atol=1e-4)
