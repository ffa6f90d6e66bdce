"""The KL and its weights against numbers computed elsewhere in 50 digits; the optimizer against its equations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from varlora.methods.mean_field_optimizer import MeanFieldAdamW, gaussian_kl, kl_cycle, kl_gradients, kl_weight

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "mean_field.json").read_text())
KL, WEIGHTS = ORACLE["kl_blob"], ORACLE["blob_weights"]
OPTIONS: dict[str, Any] = {"prior_std": 0.2, "num_examples": 100, "lr": 0.1, "kl_lr": 0.02}


def exact(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def parameters(mean: float = 0.4, rho: float = 0.3, size: int = 3) -> tuple[nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    jitter = 0.1 * torch.rand(2, size, generator=generator, dtype=torch.float64)
    return nn.Parameter(mean + jitter[0]), nn.Parameter(rho + jitter[1])


def test_the_kl_and_its_gradients_are_the_oracles() -> None:
    mean, rho = (exact(KL[name]).requires_grad_() for name in ("A", "rho"))
    total = gaussian_kl(mean, rho, KL["prior_sd"])
    assert total.item() == pytest.approx(KL["total"], rel=1e-13)
    by_autograd = torch.autograd.grad(total, (mean, rho))
    for gradients in (by_autograd, kl_gradients(mean.detach(), rho.detach(), KL["prior_sd"])):
        torch.testing.assert_close(gradients[0], exact(KL["grad_A"]), rtol=1e-13, atol=0)
        torch.testing.assert_close(gradients[1], exact(KL["grad_rho"]), rtol=1e-13, atol=0)


def test_the_kl_has_the_posterior_first() -> None:
    mean, rho = exact([0.3, -0.1]), exact([0.05, 0.2])
    q, p = Normal(mean, rho**2), Normal(exact([0.0, 0.0]), exact([0.2, 0.2]))
    assert gaussian_kl(mean, rho, 0.2).item() == pytest.approx(kl_divergence(q, p).sum().item(), rel=1e-13)
    assert kl_divergence(p, q).sum() > 10 * kl_divergence(q, p).sum()  # the other way round is another number


def test_the_kl_of_row_lengths_needs_the_rows_only() -> None:
    rows, rho = exact([[3.0, 4.0], [0.0, 2.0]]), exact([[0.4], [0.6]])
    lengths = rows.norm(dim=1)
    q = Normal(lengths, rho.squeeze(1) ** 2)
    p = Normal(torch.zeros_like(lengths), torch.full_like(lengths, 1.5))
    assert gaussian_kl(rows, rho, 1.5).item() == pytest.approx(kl_divergence(q, p).sum().item(), rel=1e-13)


@pytest.mark.parametrize("case", WEIGHTS, ids=lambda case: f"N={case['N']}")
def test_the_weights_are_the_oracles(case: dict[str, Any]) -> None:
    cycle = kl_cycle(case["N"], case["batch"])
    assert cycle == case["M"]
    for step, weight in case["at_steps"].items():
        assert kl_weight(int(step), cycle) == pytest.approx(weight, rel=1e-13, abs=0)
    ends = [*range(1, len(case["first"]) + 1)], [*range(cycle - len(case["last"]) + 1, cycle + 1)]
    for steps, weights in zip(ends, (case["first"], case["last"]), strict=True):
        assert [kl_weight(t, cycle) for t in steps] == pytest.approx(weights, rel=1e-13, abs=0)
    total = math.fsum(kl_weight(t, cycle) for t in range(1, cycle + 1))
    assert total == pytest.approx(case["sum_over_cycle"], rel=1e-14)


def test_a_cycle_of_no_steps_is_one_of_one() -> None:
    assert int(100 * 1 ** (math.pi / 8) / 1000) == 0
    assert kl_cycle(1, 1000) == 1
    assert kl_weight(7, 1) == pytest.approx(2 / 3)


def test_a_step_is_adamws_and_then_the_kls() -> None:
    mean, rho = parameters()
    twins = [nn.Parameter(p.detach().clone()) for p in (mean, rho)]
    optimizer = MeanFieldAdamW([mean, rho], gaussians=[(mean, rho)], cycle=3, **OPTIONS)
    adamw = torch.optim.AdamW(twins, lr=OPTIONS["lr"], weight_decay=0.0)
    for step in range(1, 8):
        for p, twin in zip((mean, rho), twins, strict=True):
            p.grad = torch.full_like(p, 0.1 * step - 0.3)
            twin.grad = p.grad.clone()
        optimizer.step()
        adamw.step()
        rate = OPTIONS["kl_lr"] * 2 ** ((step - 1) % 3 + 1) / 15
        with torch.no_grad():
            gradients = twins[0] / 0.04, 2 * twins[1] ** 3 / 0.04 - 2 / twins[1]
            for twin, gradient in zip(twins, gradients, strict=True):
                twin -= rate * gradient
        for p, twin in zip((mean, rho), twins, strict=True):
            torch.testing.assert_close(p, twin, rtol=1e-12, atol=0)
    assert optimizer.step_index == 7


def test_the_kls_rate_follows_the_schedule() -> None:
    mean, rho = parameters()
    optimizer = MeanFieldAdamW([mean, rho], gaussians=[(mean, rho)], cycle=1, **OPTIONS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1.0, 0.25, 0.0)[min(step, 2)])
    for share in (1.0, 0.25, 0.0):
        before = mean.detach().clone()
        mean.grad, rho.grad = torch.zeros_like(mean), torch.zeros_like(rho)
        optimizer.step()
        scheduler.step()
        pulled = before * (1 - share * OPTIONS["kl_lr"] * 2 / 3 / 0.04)
        torch.testing.assert_close(mean.detach(), pulled, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rho", [1e-3, 0.02, -0.02, 3.0, 0.0])
def test_a_kl_step_stops_at_the_kls_minimum(rho: float) -> None:
    """Plain descent would go from ρ = 0.001 to 13, and from there away for good."""
    mean, root = nn.Parameter(torch.tensor([5.0])), nn.Parameter(torch.tensor([rho]))
    optimizer = MeanFieldAdamW([mean, root], gaussians=[(mean, root)], cycle=1, **{**OPTIONS, "kl_lr": 0.07})
    mean.grad, root.grad = torch.zeros(1), torch.zeros(1)
    optimizer.step()
    assert mean.item() == 0.0
    assert root.item() == pytest.approx(math.copysign(math.sqrt(0.2), rho), rel=1e-6)


def test_without_a_cycle_the_loss_has_kl_over_n() -> None:
    mean, rho = parameters()
    twins = [nn.Parameter(p.detach().clone()) for p in (mean, rho)]
    optimizer = MeanFieldAdamW([mean, rho], gaussians=[(mean, rho)], cycle=None, **OPTIONS)
    adamw = torch.optim.AdamW(twins, lr=OPTIONS["lr"], weight_decay=0.0)
    for _ in range(3):
        for both, step in ((twins, adamw), ([mean, rho], optimizer)):
            step.zero_grad()
            loss = (both[0] - both[1]).square().mean()
            (loss + gaussian_kl(*both, 0.2) / 100 if both is twins else loss).backward()
            step.step()
    for p, twin in zip((mean, rho), twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-10, atol=0)


def test_the_place_in_the_cycle_is_part_of_the_state() -> None:
    def run(steps: int, optimizer: MeanFieldAdamW, pair: tuple[nn.Parameter, nn.Parameter]) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (pair[0].square().sum() + pair[1].sum()).backward()
            optimizer.step()

    whole, first, second = (parameters() for _ in range(3))
    make = [MeanFieldAdamW([*pair], gaussians=[pair], cycle=4, **OPTIONS) for pair in (whole, first, second)]
    run(7, make[0], whole)
    run(3, make[1], first)
    with torch.no_grad():
        for p, saved in zip(second, first, strict=True):
            p.copy_(saved)
    make[2].load_state_dict(make[1].state_dict())
    run(4, make[2], second)
    assert make[2].step_index == 7
    assert all(torch.equal(p, reference) for p, reference in zip(second, whole, strict=True))


def test_a_gradient_that_bypassed_the_noise_is_an_error() -> None:
    mean, rho = parameters()
    optimizer = MeanFieldAdamW([mean, rho], gaussians=[(mean, rho)], cycle=1, **OPTIONS)
    mean.grad = torch.ones_like(mean)
    with pytest.raises(RuntimeError, match="did not pass through its noise"):
        optimizer.step()


def test_no_gaussian_parameter_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no Gaussian parameter; use torch\.optim\.AdamW"):
        MeanFieldAdamW([parameters()[0]], gaussians=[], cycle=1, **OPTIONS)


def test_the_width_without_data_is_what_the_kl_alone_makes() -> None:
    mean, rho = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.full((1,), 0.04))
    optimizer = MeanFieldAdamW(
        [mean, rho], gaussians=[(mean, rho)], prior_std=0.2, num_examples=50, cycle=5, lr=0.1, kl_lr=0.01
    )
    for _ in range(7):
        mean.grad, rho.grad = torch.zeros(1), torch.zeros(1)
        optimizer.step()
    assert optimizer.std_without_data == pytest.approx(rho.item() ** 2, rel=1e-5)
    assert optimizer.std_without_data > 0.04**2
    rho.grad = torch.ones(1)  # what the data say does not count
    mean.grad = torch.zeros(1)
    optimizer.step()
    assert optimizer.std_without_data > rho.item() ** 2
