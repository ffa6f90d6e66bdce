"""The movement prior: as wide as the tensor has moved from its start, wherever that is, and tempered with λ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from varlora import IVON, NoiseController, set_prior_width
from varlora.ivon.movement_prior import PRIOR_STD_MIN, followed_prior_precision, movement_prior_precision

WIDTH = 3.0

OPTIONS: dict[str, Any] = {
    "ess": 3e4,
    "hess_init": 1e-2,
    "betas": (0.9, 1.0),
    "prior": "movement",
    "prior_width": WIDTH,
    "update": "adam",
}


def trained(lr: float, *, start: float = 0.0, steps: int = 100, **options: Any) -> tuple[nn.Linear, IVON, Tensor]:
    """A regression of 6 inputs on 2 outputs, begun `start` away from zero with the targets as far away."""
    model = nn.Linear(6, 2, bias=False)
    nn.init.constant_(model.weight, start)
    before = model.weight.detach().clone()
    optimizer = IVON(model.parameters(), lr=lr, **{**OPTIONS, **options})
    NoiseController(model, optimizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator)
    y = x @ torch.randn(6, 2, generator=generator) + x @ before.T
    for _ in range(steps):
        (model(x) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, before


def test_it_is_as_wide_as_the_movement() -> None:
    torch.manual_seed(0)
    start, moved = torch.randn(5, 3), 0.01 * torch.randn(5, 3)
    width = movement_prior_precision(start + moved, start, WIDTH).rsqrt()
    torch.testing.assert_close(width, WIDTH * moved.square().mean().sqrt(), rtol=1e-4, atol=0)
    ten = movement_prior_precision(start + 10 * moved, start, WIDTH).rsqrt()
    torch.testing.assert_close(ten, 10 * width, rtol=1e-4, atol=0)


def test_it_follows_a_tenth_of_the_way_in_logarithms() -> None:
    start, present = torch.zeros(4), torch.tensor(1e8)
    target = movement_prior_precision(start + 0.5, start, WIDTH)
    found = followed_prior_precision(present, start + 0.5, start, WIDTH)
    torch.testing.assert_close((found / present).log(), 0.1 * (target / present).log(), rtol=1e-4, atol=0)


def test_what_has_not_moved_has_next_to_no_noise() -> None:
    """A pretrained weight of one is sure of its one: N(0, s²) would give it noise of size s = 1."""
    model = nn.Linear(4, 4)
    nn.init.ones_(model.weight)
    optimizer = IVON(model.parameters(), lr=1e-3, **OPTIONS)
    NoiseController(model, optimizer)
    model(torch.ones(1, 4))
    for p in model.parameters():
        torch.testing.assert_close(optimizer.noise_scale(p), torch.full_like(p, PRIOR_STD_MIN), rtol=1e-4, atol=0)
    assert movement_prior_precision(torch.zeros(0), torch.zeros(0), WIDTH).item() == pytest.approx(PRIOR_STD_MIN**-2)


@pytest.mark.parametrize("lr", [1e-5, 1e-4, 1e-3, 1e-2])
def test_noise_keeps_to_what_has_been_learned_at_any_learning_rate(lr: float) -> None:
    model, optimizer, before = trained(lr)
    moved = (model.weight.detach() - before).square().mean().sqrt()
    noise = optimizer.noise_scale(model.weight).square().mean().sqrt()
    assert lr < moved < 100 * lr
    width = max(WIDTH * float(moved), PRIOR_STD_MIN)
    highest = (1 / (3e4 * 1e-2 + 1 / width**2)) ** 0.5
    assert 0.7 * highest < noise <= highest * (1 + 1e-4)


def test_it_is_renewed_by_the_movement_that_the_next_draw_will_see() -> None:
    model, optimizer, before = trained(1e-1, steps=1)
    expected = followed_prior_precision(torch.tensor(PRIOR_STD_MIN**-2), model.weight.detach(), before, WIDTH)
    assert optimizer.prior_precision(model.weight) == pytest.approx(expected.item(), rel=1e-5)


def test_weights_that_are_loaded_before_the_first_step_are_where_it_starts() -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = IVON(model.parameters(), lr=1e-3, **OPTIONS)
    optimizer.precision(model.weight)  # makes the state
    with torch.no_grad():
        model.weight.add_(1.0)
    loaded = model.weight.detach().clone()
    NoiseController(model, optimizer)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(optimizer.state[model.weight]["start"], loaded)


def test_a_state_of_another_prior_is_not_taken_for_this(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, _ = trained(1e-2, steps=1, prior="adaptive", prior_width="auto")
    state = optimizer.state_dict()
    fresh = IVON(model.parameters(), lr=1e-2, **OPTIONS)
    fresh.load_state_dict(state)
    assert "prior='adaptive' and this optimizer 'movement'" in caplog.text
    state["param_groups"][0]["prior"] = "movement"
    with pytest.raises(ValueError, match="no 'start' by parameter"):
        fresh.load_state_dict(state)


def test_where_it_starts_does_not_matter() -> None:
    precisions = [trained(1e-2, start=start)[1] for start in (0.0, 3.0)]
    first, second = (o.prior_precision(o.param_groups[0]["params"][0]) for o in precisions)
    assert first == pytest.approx(second, rel=1e-2)


def test_the_width_may_change_between_steps() -> None:
    model, optimizer, before = trained(1e-2, steps=200)
    narrow = optimizer.prior_precision(model.weight)
    optimizer.param_groups[0]["prior_width"] = 2 * WIDTH
    target = movement_prior_precision(model.weight.detach(), before, 2 * WIDTH).item()
    (0 * model(torch.ones(2, 6)).sum()).backward()
    optimizer.step()
    assert narrow > optimizer.prior_precision(model.weight) > target


def test_the_width_follows_the_training_where_it_was_left_open() -> None:
    given, adaptive = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Linear(6, 2)
    groups: list[dict[str, Any]] = [
        {"params": list(model.parameters()), "prior_width": "auto"},
        {"params": list(given.parameters())},
        {"params": list(adaptive.parameters()), "prior": "adaptive", "prior_width": "auto"},
    ]
    optimizer = IVON(groups, lr=0.1, **OPTIONS)
    for share, width in ((0.0, 0.0), (0.25, 1.0), (1.0, 4.0), (1.5, 4.0), (0.5, 2.0)):
        set_prior_width(optimizer, share)
        assert [group["prior_width"] for group in optimizer.param_groups] == [width, WIDTH, "auto"]


@pytest.mark.parametrize("share", [-0.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    optimizer = IVON(nn.Linear(6, 2).parameters(), lr=0.1, **{**OPTIONS, "prior_width": "auto"})
    with pytest.raises(ValueError, match="give the share of the steps that has been taken"):
        set_prior_width(optimizer, share)


@pytest.mark.parametrize(("saved", "own"), [("auto", 2.5), (2.5, "auto"), (2.5, 3.0)])
def test_a_state_of_another_width_goes_on_with_its_own_and_says_so(
    saved: Any, own: Any, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"lr": 1e-2, "steps": 0}
    _, first, _ = trained(**options, prior_width=saved)
    set_prior_width(first, 0.5)
    _, second, _ = trained(**options, prior_width=own)
    second.load_state_dict(first.state_dict())
    set_prior_width(second, 1.0)
    assert second.param_groups[0]["prior_width"] == (4.0 if saved == "auto" else saved)
    assert f"state has prior_width={saved!r} and this optimizer {own!r}" in caplog.text


def test_a_state_of_the_same_width_is_taken_over_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    _, first, _ = trained(1e-2, steps=0, prior_width="auto")
    set_prior_width(first, 0.5)
    _, second, _ = trained(1e-2, steps=0, prior_width="auto")
    second.load_state_dict(first.state_dict())
    first.load_state_dict(second.state_dict())
    assert not caplog.text


def test_a_width_that_nobody_has_set_is_refused_by_name() -> None:
    model = nn.Linear(3, 2)
    optimizer = IVON(model.parameters(), lr=0.1, **{**OPTIONS, "prior_width": "auto"})
    with pytest.raises(ValueError, match="prior_width is 'auto': the width of the movement prior was never set"):
        optimizer.precision(model.weight)


def test_likelihood_and_prior_are_tempered_alike() -> None:
    model, optimizer, _ = trained(1e-2)
    before = optimizer.precision(model.weight).clone()
    prior = optimizer.prior_precision(model.weight)
    optimizer.param_groups[0]["ess"] = 3e4 / 4
    torch.testing.assert_close(optimizer.precision(model.weight), before / 4)
    assert optimizer.prior_precision(model.weight) == pytest.approx(prior / 4)


def test_the_mean_is_not_pulled() -> None:
    model = nn.Linear(3, 2)
    optimizer = IVON(model.parameters(), lr=0.1, **OPTIONS)
    NoiseController(model, optimizer)
    before = model.weight.detach().clone()
    for _ in range(3):
        (0 * model(torch.ones(2, 3)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model.weight, before)


def test_the_start_survives_a_resumed_training_in_half_precision() -> None:
    model, optimizer, _ = trained(1e-2, start=0.3, steps=5)
    model, optimizer = model.bfloat16(), optimizer
    again = nn.Linear(6, 2, bias=False).bfloat16()
    other = IVON(again.parameters(), lr=1e-2, **OPTIONS)
    NoiseController(again, other)
    other.load_state_dict(optimizer.state_dict())
    start = other.state[again.weight]["start"]
    assert start.dtype == torch.float32
    torch.testing.assert_close(start, torch.full_like(start, 0.3), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "newton"}, "update='newton'; it must be 'adam' with prior='movement'"),
        ({"weight_decay": 0.1}, "weight_decay=0.1; it must be 0 with prior='movement'"),
        ({"betas": (0.9, 0.999)}, "To learn h, take prior='adaptive' or 'fixed'"),
        ({"prior_width": 0.0}, "prior_width=0.0; it must be a positive finite number, or 'auto'"),
        ({"prior": "adaptive"}, "prior_width=3.0; it must be left at 'auto' with prior='adaptive'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IVON([nn.Parameter(torch.zeros(1))], lr=0.1, **{**OPTIONS, **options})
