"""Gradient that does not come through the sample: its curvature is not in noise · gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import lora, tiny_llama, tiny_qwen3, token_ids
from noisy_nets import OPTIONS
from varlora import IVON, NoiseController
from varlora.ivon.noise import ReplayedNoise


class Penalised(nn.Module):
    """The loss x·w² / 2 at the sample, and a penalty w² that is read elsewhere: curvature x + 2."""

    def __init__(self, weight: float = 1.0, strength: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.layer.weight, weight)
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square().sum() / 2 + self.strength * self.layer.weight.square().sum()


def attach(model: nn.Module, **options: Any) -> IVON:
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], **{**OPTIONS, **options})
    NoiseController(model, optimizer, seed=7)
    return optimizer


X = torch.full((1, 1), 0.05**0.5)


@pytest.mark.parametrize("betas", [(0.9, 0.9), (0.9, 1.0)])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_penalty_inside_the_models_loss_is_refused(betas: tuple[float, float], micro_batches: int) -> None:
    """Curvature 2.05 was read as .05; with β2 = 1 the draws lacked it all the same."""
    model = Penalised().train()
    optimizer = attach(model, betas=betas)
    for _ in range(micro_batches):
        (model(X) / micro_batches).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(RuntimeError, match=r"did not pass through their noise: layer\.weight\..*penalty"):
        optimizer.step()


def test_a_penalty_outside_the_model_is_refused_under_loss_scaling_too() -> None:
    model = nn.Linear(1, 1, bias=False).train()
    optimizer = IVON(model.parameters(), **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    NoiseController(model, optimizer, scaler=scaler)
    scaler.scale(model(X).square().sum() + 1e-3 * model.weight.square().sum()).backward()
    with pytest.raises(RuntimeError, match=r"their noise: weight\."):
        scaler.step(optimizer)


def test_a_penalty_without_a_gradient_yet_is_refused_when_it_has_one() -> None:
    """LoRA's B starts at 0, where a penalty's gradient is 0 and its curvature is not."""
    model = Penalised(weight=0.0).train()
    optimizer = attach(model)
    model(X).backward()
    optimizer.step()
    optimizer.zero_grad()
    model(X).backward()
    with pytest.raises(RuntimeError, match=r"layer\.weight"):
        optimizer.step()


def test_a_refused_step_is_over_with_zero_grad() -> None:
    model = Penalised().train()
    optimizer = attach(model)
    model(X).backward()
    optimizer.zero_grad()
    model.strength = 0.0
    model(X).backward()
    optimizer.step()
    assert optimizer.step_index == 1


class Deep(nn.Module):
    """One layer read four times, the second and third time in segments that may be recomputed."""

    def __init__(self, segment: Callable[..., Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(4, 4, dtype=dtype)
        self.tied = nn.Linear(4, 4, dtype=dtype)
        self.tied.weight = self.shared.weight
        self.segment = segment

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(x))
        for layer in (self.tied, self.shared):
            x = self.segment(lambda y, layer=layer: torch.tanh(layer(y)), x)
        return self.tied(x)


SEGMENTS: dict[str, Callable[..., Tensor]] = {
    "kept": lambda part, x: part(x),
    "recomputed": lambda part, x: checkpoint(part, x, use_reentrant=False),
    "reentrant": lambda part, x: checkpoint(part, x, use_reentrant=True),
}


@pytest.mark.filterwarnings("ignore:.*half precision")
@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_no_alarm_for_a_layer_that_is_read_many_times(segment: str, dtype: torch.dtype) -> None:
    model = Deep(SEGMENTS[segment], dtype).train()
    model.shared.weight.register_hook(lambda gradient: gradient * 0.5)  # the user's own
    optimizer = attach(model)
    for step in range(6):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
        for _ in range(2):
            model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.step_index == 6


@pytest.mark.parametrize("segment", SEGMENTS)
def test_a_penalty_is_found_among_many_reads(segment: str) -> None:
    model = Deep(SEGMENTS[segment], torch.float32).train()
    optimizer = attach(model)
    (model(torch.ones(5, 4)).square().mean() + 1e-4 * model.shared.weight.square().sum()).backward()
    with pytest.raises(RuntimeError, match=r"their noise: shared\.weight\."):
        optimizer.step()


def test_no_alarm_for_a_term_of_weight_zero() -> None:
    """Multiplying all weights by 0 keeps data parallelism from waiting for unused ones."""
    model = Penalised(strength=0.0).train()
    optimizer = attach(model)
    model(X).backward()
    optimizer.step()
    assert optimizer.step_index == 1


def test_no_alarm_for_a_gradient_that_is_not_finite() -> None:
    model = Deep(SEGMENTS["kept"], torch.float32).train()
    optimizer = attach(model)
    (model(torch.ones(5, 4)).square().mean() * torch.inf).backward()
    optimizer.step()
    assert optimizer.skipped_steps == 1


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"bias": "lora_only"},
    ],
    ids=str,
)
@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3])
def test_no_alarm_for_adapters(build: Callable[[], Any], options: dict[str, Any]) -> None:
    model = lora(build(), **options).train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    optimizer = attach(model)
    ids = token_ids()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    assert optimizer.step_index == 1


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_trained_tokens_of_tied_embeddings_are_sampled_in_both_places() -> None:
    """The head reads the delta that belongs to the embedding's layer; it saw the mean, and its curvature was lost."""
    model = lora(tiny_qwen3(), target_modules=("q_proj",), trainable_token_indices=[3, 5]).train()
    name = next(name for name, p in model.named_parameters() if "tokens_delta" in name and p.requires_grad)
    delta = model.get_parameter(name)
    for other, p in model.named_parameters():
        p.requires_grad_(other == name)
    twin = copy.deepcopy(model)
    eps = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
    optimizer = IVON([delta], lr=0.1, ess=10.0, hess_init=1.0)
    controller = NoiseController(model, optimizer, ReplayedNoise({name: [eps]}))
    ids = token_ids(rows=4, vocab_size=8)
    model(input_ids=ids, labels=ids).loss.backward()

    noise = eps / 10.0**0.5
    at_sample = twin.get_parameter(name)
    with torch.no_grad():
        at_sample += noise
    twin(input_ids=ids, labels=ids).loss.backward()
    torch.testing.assert_close(delta.grad, at_sample.grad)
    torch.testing.assert_close(controller.collect()[delta], at_sample.grad * noise)


def test_a_layer_that_reads_anothers_weight_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.inner(x)), self.inner.weight)

    model = Tied().train()
    optimizer = attach(model)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"their noise: inner\.weight\."):
        optimizer.step()


def test_a_detached_controller_leaves_no_hook() -> None:
    model = nn.Linear(2, 1)
    NoiseController(model, IVON(model.parameters(), **OPTIONS)).detach()
    assert not model.weight._backward_hooks
