"""When lora_A is random and when not, whose draw it is, and that nothing of it stays on the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from models import lora, tiny_bert_classifier, tiny_llama, token_ids
from varlora.adapters import trained_tensors
from varlora.ivon.noise import CounterNoise, Draw
from varlora.methods.blob import flipout
from varlora.methods.random_factors import RandomFactors, release
from varlora.methods.scalabl import along_rows

PERTURBATIONS = {"blob": flipout, "scalabl": along_rows}


def attach(model: nn.Module, method: str = "blob", *, bound: float = 0.6, **options: Any) -> RandomFactors:
    def shape(of: torch.Size) -> torch.Size:
        return of if method == "blob" else torch.Size((of[0], 1))

    options = {"seed": 3, **options}
    return RandomFactors(model, PERTURBATIONS[method], std_shape=shape, initial_std_bound=bound, **options)


def llama(**config: Any) -> PeftModel:
    return lora(tiny_llama(), **config).train()


def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    out: Tensor = model(token_ids() if ids is None else ids).logits
    return out


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **({"rtol": 0, "atol": 0} | tolerance))


@pytest.mark.parametrize("method", PERTURBATIONS)
def test_only_a_training_forward_with_gradients_is_random(method: str) -> None:
    model = llama()
    mean = logits(model).detach()
    attach(model, method)
    assert (logits(model) - mean).abs().max() > 0.01
    with torch.no_grad():
        assert torch.equal(logits(model), mean)
    model.eval()
    assert torch.equal(logits(model), mean)
    model.train()
    inner = model.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.ones(1, 3, 16)
    assert torch.equal(inner(x), inner(x))
    release(model)
    assert torch.equal(logits(model), mean)


class Interrupt(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("error", [RuntimeError, Interrupt])
def test_a_training_forward_that_breaks_off_leaves_the_mean(error: type[BaseException]) -> None:
    model = llama()
    mean, weights = logits(model).detach(), {n: p.detach().clone() for n, p in model.named_parameters()}
    attach(model)

    def fail(*_: Any) -> None:
        raise error

    breaking = model.get_base_model().model.layers[1].register_forward_hook(fail)
    with pytest.raises(error):
        logits(model)
    breaking.remove()
    assert torch.equal(logits(model.eval()), mean)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters() if n in weights)


@pytest.mark.parametrize("method", PERTURBATIONS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_sees_the_same_noise(method: str, reentrant: bool) -> None:
    def run(checkpointing: bool) -> dict[str, Tensor]:
        model = llama()
        if checkpointing:
            model.get_base_model().enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            assert model.get_base_model().model.layers[0].gradient_checkpointing
        attach(model, method)
        for _ in range(2):  # accumulates two draws
            logits(model).square().mean().backward()
        return gradients(model)

    plain, checkpointed = run(False), run(True)
    assert any("sqrt_std" in name for name in plain)
    assert_equal(plain, checkpointed, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", PERTURBATIONS)
def test_two_micro_batches_have_two_draws_and_gradients_that_add_up(method: str) -> None:
    first, second = token_ids(seed=1), token_ids(seed=2)
    model = llama()
    attach(model, method)
    for ids in (first, second):
        (logits(model, ids).square().mean() / 2).backward()
    accumulated = gradients(model)

    alone: list[dict[str, Tensor]] = []
    for draw, ids in enumerate((first, second)):
        model = llama()
        factors = attach(model, method)
        logits(model, ids)
        factors.draw = Draw(factors.source, 0, draw, 0)  # held until a backward pass
        (logits(model, ids).square().mean() / 2).backward()
        alone.append(gradients(model))
    sums = {name: alone[0][name] + alone[1][name] for name in accumulated}
    assert_equal(accumulated, sums, rtol=1e-5, atol=1e-8)


def test_a_draw_is_held_until_a_backward_pass_has_used_it() -> None:
    model = llama()
    attach(model)
    first, again = logits(model), logits(model)
    assert torch.equal(first, again)
    again.sum().backward()
    with torch.no_grad():
        logits(model)
    second = logits(model)
    assert not torch.equal(second, first)


class Steps:
    step_index = 0


def test_noise_is_a_function_of_seed_step_draw_and_rank() -> None:
    def run(seed: int = 3, step: int = 0, rank: int = 0, draws: int = 1) -> Tensor:
        model = llama()
        factors = attach(model, seed=3, source=CounterNoise(seed), rank=rank)
        steps = Steps()
        steps.step_index = step
        factors.follow(steps)  # type: ignore[arg-type]
        for _ in range(draws):
            out = logits(model)
            out.sum().backward()
        return out.detach()

    assert torch.equal(run(), run())
    others = [run(seed=4), run(step=1), run(rank=1), run(draws=2)]
    assert all(not torch.equal(run(), other) for other in others)


def test_the_start_is_uniform_in_its_bounds_and_the_seeds_alone() -> None:
    def start(seed: int, others_seed: int) -> Tensor:
        torch.manual_seed(others_seed)  # the global generator plays no part
        model = get_peft_model(nn.Sequential(nn.Linear(800, 5)), LoraConfig(r=8, target_modules=["0"]))
        return attach(model, bound=0.05, seed=seed).factors[0].sqrt_std.detach()

    first, same, other = start(0, 0), start(0, 1), start(1, 0)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    low, high = 0.05 / 2**0.5, 0.05
    assert low <= first.min() < low + 1e-4
    assert high - 1e-4 < first.max() <= high
    quantiles = ((first - low) / (high - low)).flatten().sort().values
    assert (quantiles - torch.linspace(0, 1, quantiles.numel())).abs().max() < 0.03  # Kolmogorov-Smirnov, 6400 entries


def test_peft_saves_and_loads_the_standard_deviations(tmp_path: Any) -> None:
    model = llama()
    saved = {f.key: f.sqrt_std.detach().clone() for f in attach(model).factors}
    model.save_pretrained(tmp_path)
    fresh = llama()
    factors = attach(fresh, seed=9)
    assert not torch.equal(factors.factors[0].sqrt_std, saved[factors.factors[0].key])
    fresh.load_adapter(tmp_path, "default")
    assert all(torch.equal(f.sqrt_std, saved[f.key]) for f in factors.factors)
    assert len(saved) == 4


def test_nothing_stays_on_the_model() -> None:
    model = llama()
    keys, names = list(trained_tensors(model)), list(model.state_dict())
    attach(model)
    assert len(trained_tensors(model)) == len(keys) + 4
    again = attach(model, "scalabl")  # takes the place of what a broken-off training left
    assert {f.sqrt_std.shape for f in again.factors} == {(4, 1)}
    release(model)
    release(model)
    assert list(trained_tensors(model)) == keys
    assert list(model.state_dict()) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_copy_of_the_model_is_random_by_itself() -> None:
    model = llama()
    attach(model)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(model), logits(copied))
    release(copied)
    assert not torch.equal(logits(model), logits(copied))


def test_a_frozen_lora_a_is_not_random() -> None:
    model = llama()
    trained = [n for n, p in model.named_parameters() if "lora_A" in n and p.requires_grad]
    model.get_parameter(trained[0]).requires_grad_(False)
    assert len(attach(model).factors) == len(trained) - 1


def test_a_bf16_base_with_a_float32_adapter_trains() -> None:
    model = lora(tiny_llama().to(torch.bfloat16)).train()
    factors = attach(model)
    assert {f.sqrt_std.dtype for f in factors.factors} == {torch.float32}
    logits(model).float().square().mean().backward()
    found = gradients(model)
    assert all(bool(found[name].abs().sum() > 0) for name in found if "sqrt_std" in name)
    assert sum("sqrt_std" in name for name in found) == len(factors.factors)


@pytest.mark.parametrize("method", PERTURBATIONS)
def test_autocast(method: str) -> None:
    model = llama()
    mean = logits(model).detach()
    attach(model, method)
    exact = logits(model).detach()
    with torch.autocast("cpu", torch.bfloat16):
        coarse = logits(model)
    torch.testing.assert_close(coarse.float(), exact, rtol=0.05, atol=0.1)
    assert (coarse.float() - exact).abs().mean() < 0.2 * (exact - mean).abs().mean()


def convolution() -> nn.Module:
    return get_peft_model(nn.Sequential(nn.Conv1d(2, 2, 1)), LoraConfig(r=2, target_modules=["0"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tiny_llama, r"no LoRA adapter to be random; wrap the model with peft\.get_peft_model"),
        (convolution, r"model\.0 adapts a Conv1d; leave it out of target_modules"),
        (lambda: llama(target_modules=["embed_tokens"]), r"embed_tokens is an embedding; leave it out"),
        (lambda: llama(use_dora=True), r"q_proj is a LoRA variant \(DoraLinearVariant\); use plain LoRA"),
        (lambda: llama().to(torch.bfloat16), r"adapter in torch\.bfloat16, too coarse.*keep the adapter in float32"),
        (lambda: frozen(lora(tiny_bert_classifier(), target_modules=["query"])), r"no lora_A .* trains"),
    ],
)
def test_what_cannot_be_random_is_refused_by_name(make: Any, message: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=message):
        attach(model)
    assert not any(m._forward_hooks for m in model.modules())


def frozen(model: nn.Module) -> nn.Module:
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    return model
