"""Flipout's distribution and gradients, and BLoB where the exact posterior is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from varlora.ivon.noise import CounterNoise, Draw
from varlora.methods.blob import LARGEST_PRECISION, Blob, flipout
from varlora.methods.mean_field_optimizer import MeanFieldAdamW
from varlora.methods.random_factors import Factor, RandomFactors
from varlora.posterior import PointMass

RANK, INPUTS, DRAWS = 3, 5, 4000


def factor(dtype: torch.dtype = torch.float64) -> Factor:
    generator = torch.Generator().manual_seed(0)
    lora_a = nn.Linear(INPUTS, RANK, bias=False, dtype=dtype)
    lora_a.register_parameter(
        "sqrt_std", nn.Parameter(0.5 + torch.rand(RANK, INPUTS, generator=generator, dtype=dtype))
    )
    return Factor("a", lora_a, nn.Linear(RANK, 2, bias=False))


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def perturbations(a: Factor, x: Tensor) -> Tensor:
    """δ(x) by draw, (DRAWS, ..., r)."""
    source, output = CounterNoise(0), a.lora_a(x)
    return torch.stack([flipout(a, x, output, Draw(source, 0, i, 0)).detach() for i in range(DRAWS)])


def test_flipout_is_weight_noise_for_each_example() -> None:
    """Mean zero, variance Σ x² σ², and between two tokens of an example the covariance Σ x x' σ²."""
    a, x = factor(), inputs(2, 3)
    delta = perturbations(a, x)  # (DRAWS, 2 examples, 3 tokens, r)
    variance = x.square() @ a.sqrt_std.detach().pow(4).T
    assert bool((delta.mean(0).abs() < 4.5 * (variance / DRAWS).sqrt()).all())
    torch.testing.assert_close(delta.var(0), variance, rtol=0.12, atol=0)
    within = torch.einsum("nbtr,nbur->btur", delta, delta) / DRAWS
    expected = torch.einsum("bti,bui,ri->btur", x, x, a.sqrt_std.detach().pow(4))
    scale = (variance[:, :, None] * variance[:, None]).sqrt()
    assert bool(((within - expected) / scale).abs().max() < 4.5 * math.sqrt(2 / DRAWS))


def test_flipout_decorrelates_the_examples_of_a_batch() -> None:
    a = factor()
    x = inputs(1, 3).expand(2, -1, -1)  # twice the same example: one shared draw would correlate fully
    first, second = perturbations(a, x).unbind(1)
    correlation = (first * second).mean(0) / (first.square().mean(0) * second.square().mean(0)).sqrt()
    assert bool((correlation.abs() < 4.5 / math.sqrt(DRAWS)).all())


def test_all_tokens_of_an_example_see_the_same_weights() -> None:
    """δ is linear in x over the tokens of an example; a sign for each token would break that."""
    a, x = factor(), inputs(2, 2)
    third = x[:, :1] - 2 * x[:, 1:]
    x = torch.cat([x, third], 1)
    delta = flipout(a, x, a.lora_a(x), Draw(CounterNoise(0), 0, 0, 0))
    torch.testing.assert_close(delta[:, 2], delta[:, 0] - 2 * delta[:, 1])


def test_rows_that_are_no_examples_see_the_same_weights() -> None:
    a, x = factor(), inputs(3)
    x = torch.cat([x[:2], x[:1] + x[1:2]])
    delta = flipout(a, x, a.lora_a(x), Draw(CounterNoise(0), 0, 0, 0))
    torch.testing.assert_close(delta[2], delta[0] + delta[1])


def test_rhos_gradient_is_the_formulas() -> None:
    """dL/dρ = 2 ρ ε Σ_n (g_n ∘ s_n)(x_n ∘ r_n)ᵀ, and none flows into the mean through the noise."""
    a, x = factor(), inputs(4, 1)
    source = CounterNoise(0)
    g = torch.randn(4, 1, RANK, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (flipout(a, x, a.lora_a(x), Draw(source, 5, 1, 0)) * g).sum().backward()

    def noise(name: str, *shape: int) -> Tensor:
        return Draw(source, 5, 1, 0).normal(name, torch.empty(*shape, dtype=torch.float64))

    def signs(name: str, size: int) -> Tensor:
        return 1 - 2 * (noise(f"a {name} signs", 4, 1, size) < 0).double()

    rho = a.sqrt_std.detach()
    outer = torch.einsum("ntr,nti->ri", g * signs("output", RANK), x * signs("input", INPUTS))
    torch.testing.assert_close(a.sqrt_std.grad, 2 * rho * noise("a", RANK, INPUTS) * outer)
    assert a.mean.grad is None


def linear_model(size: int, outputs: int) -> PeftModel:
    """y = A x: the base weights are 0, B is the identity and frozen."""
    base = nn.Sequential(nn.Linear(size, outputs, bias=False, dtype=torch.float64))
    nn.init.zeros_(base[0].weight)
    model = get_peft_model(base, LoraConfig(r=outputs, lora_alpha=outputs, target_modules=["0"]))
    model.double()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.requires_grad_(False).copy_(torch.eye(outputs))
    return model


def test_plain_bayes_finds_the_posterior_of_linear_regression() -> None:
    """Orthogonal inputs make the posterior of A diagonal: precision n_i/τ² + 1/s², n_i = Σ x_i²."""
    generator = torch.Generator().manual_seed(0)
    size, outputs, n, noise_std, prior_std = 3, 2, 24, 0.5, 0.2
    orthogonal, _ = torch.linalg.qr(torch.randn(n, size, generator=generator, dtype=torch.float64))
    power = torch.tensor([2.0, 8.0, 40.0], dtype=torch.float64)
    x = orthogonal * power.sqrt()
    truth = torch.tensor([[0.3, -0.2, 0.1], [0.05, 0.25, -0.3]], dtype=torch.float64)
    y = x @ truth.T + noise_std * torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    precision = power / noise_std**2 + prior_std**-2
    mean = (y.T @ x) / noise_std**2 / precision

    with torch.no_grad():
        model = linear_model(size, outputs).train()
    factors = Blob(initial_std_bound=0.3).random_factors(model, seed=0)
    (a,) = factors.factors
    optimizer = MeanFieldAdamW(
        [a.mean, a.sqrt_std],
        gaussians=[(a.mean, a.sqrt_std)],
        prior_std=prior_std,
        num_examples=n,
        cycle=None,
        lr=0.02,
        kl_lr=0.01,
    )
    factors.follow(optimizer)
    steps = 900
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: max(0.0, 1 - t / steps) ** 2)
    for _ in range(steps):
        optimizer.zero_grad()
        residual = y[:, None] - model(x[:, None])  # (examples, 1, outputs)
        (residual.square().sum() / (2 * noise_std**2) / n).backward()
        optimizer.step()
        schedule.step()
    found = factors.std()[a.key].pow(-2)
    torch.testing.assert_close(found, precision.expand(outputs, -1), rtol=0.1, atol=0)
    assert bool(((a.mean - mean).abs() * precision.sqrt()).max() < 0.1)  # in posterior standard deviations


def test_the_posterior_is_rho_to_the_fourth_on_a_alone() -> None:
    point = PointMass(mean={"m.lora_A.weight": torch.ones(1, 2), "m.lora_B.weight": torch.ones(2, 1)})
    q = Blob(prior_std=0.5).posterior(point, {"m.lora_A.weight": torch.tensor([[0.1, 1e-40]], dtype=torch.float64)})
    torch.testing.assert_close(q.precision["m.lora_A.weight"], torch.tensor([[100.0, LARGEST_PRECISION]]))
    assert bool(torch.isinf(q.precision["m.lora_B.weight"]).all())
    assert q.meta.prior_precision == {"m.lora_A.weight": 4.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"kl_learning_rate": -1.0}, "kl_learning_rate is -1.0; it must be positive"),
        ({"prior_std": math.inf}, "prior_std is inf; it must be finite"),
        ({"initial_std_bound": math.nan}, "initial_std_bound is nan; it must be positive"),
        ({"kl_reweighting": False, "kl_learning_rate": 0.1}, r"no effect with kl_reweighting=False"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Blob(**options)


def test_blobs_rho_is_an_entrys() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 2)), LoraConfig(r=2, target_modules=["0"]))
    factors = Blob().random_factors(model, seed=0)
    assert isinstance(factors, RandomFactors)
    assert factors.factors[0].sqrt_std.shape == factors.factors[0].mean.shape == (2, 4)
