"""What the default's variance is: one number a tensor, which knows the number of examples and no curvature."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from varlora import IVON, IVONConfig, NoiseController, posterior_of, set_prior_width

N, STEPS = 200, 150


def trained(recipe: IVONConfig, *, scale: float = 1.0) -> tuple[nn.Module, IVON]:
    """A regression with unit noise, ½ (y − f)² a row, on inputs of the given scale: Σ xᵀx/N is about scale² · 1."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    x = scale * torch.randn(N, 4)
    y = x @ torch.randn(4, 2) / scale + torch.randn(N, 2)
    optimizer = IVON(model.parameters(), **recipe.optimizer_kwargs())
    noise = NoiseController(model, optimizer, seed=0)
    for step in range(STEPS):
        set_prior_width(optimizer, step / STEPS)
        (0.5 * (model(x) - y).square().sum(1).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    set_prior_width(optimizer, 1.0)
    noise.detach()
    return model, optimizer


def default() -> IVONConfig:
    return IVONConfig(lr=0.05, ess=100.0 * N, hess_init=0.01)


def test_the_default_has_one_variance_for_each_tensor_and_a_published_recipe_one_for_each_weight() -> None:
    model, optimizer = trained(default())
    assert [len(v.unique()) for v in posterior_of(model, optimizer).variance.values()] == [1, 1]
    published = IVONConfig(recipe="cong2024", lr=0.03, ess=1e4)
    model, optimizer = trained(published)
    assert [len(v.unique()) for v in posterior_of(model, optimizer).variance.values()] == [2, 8]


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_beside_the_exact_posterior_its_variance_is_off_by_the_curvature(scale: float) -> None:
    """docs/method.md: at inputs of scale c the exact variance is 1/(N c²), the default's 1/N, whatever λ/N says."""
    model, optimizer = trained(default(), scale=scale)
    found = posterior_of(model, optimizer).variance["weight"]
    assert float((found * N * scale**2).mean()) == pytest.approx(scale**2, rel=0.05)
