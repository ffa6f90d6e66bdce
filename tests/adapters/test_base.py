"""A posterior goes onto the base model of its training, and onto no other one of the same shapes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import Trainer

from adapted_models import ADAPTED
from models import lora, tiny_bert_classifier, tiny_llama, token_ids
from varlora import IVON, IVONConfig, VariationalCallback
from varlora.adapters import base_fingerprint, check_base, fixed_tensors, trained_tensors
from varlora.posterior import PointMass, point_mass_of
from varlora.prediction.prediction import predict
from varlora.readout.readout import AnswerTokens

BATCH = {"input_ids": token_ids(), "attention_mask": torch.ones(2, 6, dtype=torch.long), "labels": torch.tensor([0, 1])}
READOUT = AnswerTokens(token_ids=(5, 6), answers=("a", "b"))


def learned(model: nn.Module) -> PointMass:
    return point_mass_of(model, method="adamw")


def predicted(model: nn.Module, q: PointMass) -> torch.Tensor:
    return predict(model, q, [BATCH], readout=READOUT).log_probs


def changed(name: str, model: PeftModel) -> PeftModel:
    with torch.no_grad():
        model.get_base_model().get_parameter(name).mul_(1.02)
    return model


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (lambda: lora(tiny_llama(seed=7)), "weights and embeddings"),
        (lambda: changed("model.layers.1.mlp.down_proj.weight", lora(tiny_llama())), "weights"),
        (lambda: changed("model.layers.0.self_attn.q_proj.base_layer.weight", lora(tiny_llama())), "weights"),
        (lambda: changed("model.embed_tokens.weight", lora(tiny_llama())), "embeddings"),
    ],
)
def test_another_base_of_the_same_shapes_is_refused(other: Callable[[], PeftModel], differs: str) -> None:
    q = learned(lora(tiny_llama()))
    q = dataclasses.replace(q, meta=dataclasses.replace(q.meta, base_model="the-base"))
    with pytest.raises(ValueError, match=rf"not the base model .* \(the-base\): the {differs} of the one given"):
        predicted(other(), q)


def test_the_same_base_passes_in_another_precision_and_with_a_vocabulary_that_grew() -> None:
    q = learned(lora(tiny_llama().to(torch.bfloat16)))
    predicted(lora(tiny_llama().to(torch.bfloat16).float()), q)
    predicted(lora(tiny_llama()), q)  # bfloat16 was rounded from it
    grown = tiny_llama()
    grown.resize_token_embeddings(80)
    predicted(lora(grown), q)
    shrunk = tiny_llama()
    shrunk.resize_token_embeddings(50)
    with pytest.raises(ValueError, match="the embeddings of"):
        check_base(lora(shrunk), q.mean.keys(), q.meta.base_fingerprint, None)


def packed(model: PeftModel) -> PeftModel:
    """As bitsandbytes leaves a model: all linear layers but the output's are packed."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not {"lora_A", "lora_B", "lm_head"} & set(name.split(".")):
            module.weight.quant_state = object()  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("quantized_first", [True, False])
def test_a_quantized_base_and_the_whole_one_are_compared_by_what_is_not_packed(quantized_first: bool) -> None:
    trained, other = (packed, lambda model: model) if quantized_first else (lambda model: model, packed)
    q = learned(trained(lora(tiny_llama())))
    expected = q.meta.base_fingerprint
    check_base(other(lora(tiny_llama())), q.mean.keys(), expected, None)
    check_base(trained(lora(tiny_llama())), q.mean.keys(), expected, None)
    with pytest.raises(ValueError, match="the weights of the one given"):
        check_base(
            other(changed("model.layers.1.input_layernorm.weight", lora(tiny_llama()))), q.mean.keys(), expected, None
        )
    with pytest.raises(ValueError, match="the embeddings of the one given"):
        check_base(other(changed("model.embed_tokens.weight", lora(tiny_llama()))), q.mean.keys(), expected, None)


@pytest.mark.parametrize("build", ADAPTED.values(), ids=ADAPTED.keys())
def test_an_adapter_is_no_part_of_its_base(build: Callable[[], PeftModel]) -> None:
    model, again = build(), build()
    held = {**trained_tensors(model), **fixed_tensors(model)}
    fingerprint = base_fingerprint(model, held)
    with torch.no_grad():
        for p in trained_tensors(again).values():
            p.add_(1.0)
    assert base_fingerprint(again, held) == fingerprint
    again.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "query"]))
    assert base_fingerprint(again, held) == fingerprint
    with again.disable_adapter():
        assert base_fingerprint(again, held) == fingerprint


def test_a_head_that_was_neither_trained_nor_kept_is_noticed() -> None:
    q = learned(lora(tiny_bert_classifier(), target_modules=("query",)))
    again = lora(tiny_bert_classifier(), target_modules=("query",))
    nn.init.normal_(again.get_base_model().classifier.weight)  # as from_pretrained draws one anew
    with pytest.raises(ValueError, match="no part of it drawn anew"):
        check_base(again, q.mean.keys(), q.meta.base_fingerprint, None)


def test_a_posterior_of_a_former_version_passes() -> None:
    q = learned(lora(tiny_llama()))
    former = dataclasses.replace(q, meta=dataclasses.replace(q.meta, base_fingerprint=None))
    assert predicted(lora(tiny_llama(seed=7)), former).shape == (2, 1, 2)


def test_a_run_is_not_resumed_on_another_base() -> None:
    def begun(model: PeftModel, optimizer: IVON, step: int) -> None:
        state = SimpleNamespace(global_step=step, max_steps=4, num_train_epochs=1)
        arguments: Any = Trainer(model=model).args
        VariationalCallback(num_examples=4).on_train_begin(
            arguments,
            state,
            SimpleNamespace(),
            model=model,
            optimizer=optimizer,  # type: ignore[arg-type]
        )

    def optimizer_of(model: PeftModel) -> IVON:
        options = IVONConfig(lr=0.1, ess=1e4).optimizer_kwargs()
        return IVON([p for p in model.parameters() if p.requires_grad], **options)

    first = lora(tiny_llama())
    before = optimizer_of(first)
    begun(first, before, step=0)
    for seed, refused in ((0, False), (7, True)):
        model = lora(tiny_llama(seed=seed))
        optimizer = optimizer_of(model)
        optimizer.load_state_dict(copy.deepcopy(before.state_dict()))
        if refused:
            with pytest.raises(ValueError, match="not the base model that the posterior was trained on"):
                begun(model, optimizer, step=2)
        else:
            begun(model, optimizer, step=2)
