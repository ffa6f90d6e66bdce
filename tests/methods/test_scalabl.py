"""ScalaBL: the start is the same model, the noise is on the row lengths of A, the posterior's covariance is that."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from models import lora, tiny_llama, token_ids
from varlora.ivon.noise import CounterNoise, Draw
from varlora.methods.random_factors import Factor
from varlora.methods.scalabl import Scalabl, along_rows, directions, orthogonalise
from varlora.posterior import PointMass

KEY, OTHER = "m.lora_A.weight", "m.lora_B.weight"


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_start_is_a_singular_value_decomposition_of_the_same_model() -> None:
    for shape in ((3, 7), (5, 2)):  # also with more rows than columns
        a, b = matrix(*shape), matrix(4, shape[0], seed=1)
        before, values = b @ a, torch.linalg.svdvals(a)
        orthogonalise(a, b)
        torch.testing.assert_close(b @ a, before)
        torch.testing.assert_close(a.norm(dim=1)[: len(values)], values)
        gram = a @ a.T
        torch.testing.assert_close(gram, gram.diagonal().diag())


def test_the_model_computes_the_same_after_the_start() -> None:
    model = lora(tiny_llama(), b_std=0.5).eval()
    before = model(token_ids()).logits
    a = model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight
    original = a.detach().clone()
    factors = Scalabl().random_factors(model, seed=0)
    torch.testing.assert_close(model(token_ids()).logits, before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(a, original)
    assert all(f.sqrt_std.shape == (4, 1) for f in factors.factors)  # r numbers for each module


def test_the_noise_is_that_of_the_row_lengths() -> None:
    lora_a = nn.Linear(5, 3, bias=False, dtype=torch.float64)
    lora_a.register_parameter("sqrt_std", nn.Parameter(matrix(3, 1, seed=2).abs() + 0.1))
    a, x = Factor("a", lora_a, nn.Linear(3, 2)), matrix(2, 4, 5, seed=3)
    source = CounterNoise(0)
    delta = along_rows(a, x, lora_a(x), Draw(source, 2, 1, 0))
    eps = Draw(source, 2, 1, 0).normal("a", a.sqrt_std)
    unit = a.mean / a.mean.norm(dim=1, keepdim=True)
    torch.testing.assert_close(delta, x @ (a.sqrt_std.square() * eps * unit).T)
    gradients = torch.autograd.grad(delta.sum(), (a.sqrt_std, a.mean))
    by_hand = torch.autograd.grad((x @ (a.sqrt_std.square() * eps * unit).T).sum(), (a.sqrt_std, a.mean))
    for gradient, reference in zip(gradients, by_hand, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_a_row_of_zeros_has_no_noise_and_finite_gradients() -> None:
    lora_a = nn.Linear(5, 2, bias=False)
    with torch.no_grad():
        lora_a.weight[0] = 0.0
    lora_a.register_parameter("sqrt_std", nn.Parameter(torch.full((2, 1), 0.5)))
    a, x = Factor("a", lora_a, nn.Linear(2, 2)), torch.ones(3, 5)
    delta = along_rows(a, x, lora_a(x), Draw(CounterNoise(0), 0, 0, 0))
    assert bool((delta[:, 0] == 0).all())
    delta.sum().backward()
    assert lora_a.weight.grad is not None
    assert bool(lora_a.weight.grad.isfinite().all())
    assert bool((directions(lora_a.weight)[0] == 0).all())


def test_the_posteriors_draws_move_each_row_along_itself() -> None:
    mean, std = matrix(3, 6).float(), torch.tensor([[0.5], [0.2], [1.0]], dtype=torch.float64)
    q = Scalabl().posterior(PointMass(mean={KEY: mean, OTHER: torch.ones(2, 3)}), {KEY: std})
    unit = nn.functional.normalize(mean.double(), dim=1)
    torch.testing.assert_close(q.variance[KEY].double(), std.square() * unit.square(), rtol=1e-5, atol=1e-8)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([q.sample(generator)[KEY] for _ in range(4000)]).double() - mean
    covariance = torch.einsum("nri,nsj->rsij", draws, draws) / len(draws)
    expected = torch.einsum("rs,r,ri,sj->rsij", torch.eye(3).double(), std.squeeze(1).square(), unit, unit)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.03)
    rest = draws - (draws * unit).sum(-1, keepdim=True) * unit
    assert rest.abs().max() < 1e-5
    assert torch.equal(q.sample(generator)[OTHER], torch.ones(2, 3))


def test_training_and_posterior_draw_from_the_same_distribution() -> None:
    """The variance of A x over training draws is x's quadratic form with the posterior's covariance."""
    model = get_peft_model(nn.Sequential(nn.Linear(5, 2)), LoraConfig(r=2, target_modules=["0"]))
    method = Scalabl(initial_std_bound=0.8)
    (a,) = method.random_factors(model, seed=0).factors
    x = matrix(1, 5).float()
    output, source = a.lora_a(x), CounterNoise(0)
    deltas = torch.stack([along_rows(a, x, output, Draw(source, 0, i, 0)).detach() for i in range(4000)])
    q = method.posterior(PointMass(mean={KEY: a.mean.detach()}), {KEY: a.sqrt_std.detach().double().square()})
    per_row = torch.einsum("kri,i->kr", q.deviations[KEY], x[0]).square().sum(0)
    torch.testing.assert_close(deltas.var(0)[0], per_row, rtol=0.1, atol=0)
