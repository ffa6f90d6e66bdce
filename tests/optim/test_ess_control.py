"""The law that steers λ: its derivatives against autograd, its estimate against a fitted temperature, its bounds."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from varlora.metrics import likeliest_temperature
from varlora.optim.ess_control import (
    BOUNDS,
    LARGEST_MOVE,
    PRIOR_INFORMATION,
    RETURN,
    HeldOutRecord,
    calibration_slope,
    moments,
    steered_ess,
)


def logits_and_labels(rows: int = 40, draws: int = 4, classes: int = 5, holes: bool = False) -> tuple[Tensor, Tensor]:
    """(S, n, C) float64 logits, some of them -inf where `holes`, and labels of choices that exist."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(1, rows, classes, generator=generator, dtype=torch.float64)
    logits = 2 * (shared + torch.randn(draws, rows, classes, generator=generator, dtype=torch.float64))
    labels = torch.randint(0, classes - 2 if holes else classes, (rows,), generator=generator)
    if holes:
        logits[:, ::2, classes - 1] = -torch.inf
        logits[:, ::3, classes - 2] = -torch.inf
    return logits, labels


def loss_at(logits: Tensor, labels: Tensor, inverse: Tensor) -> Tensor:
    """−log (1/S) Σ_s softmax(b f_s)_y of every row, in the plainest way."""
    absent = torch.isinf(logits)
    scaled = (logits.masked_fill(absent, 0.0) * inverse).masked_fill(absent, -torch.inf)
    probs = scaled.softmax(-1).gather(-1, labels[None, :, None].expand(len(logits), -1, 1))[..., 0]
    return -probs.mean(0).log()


def slope_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return calibration_slope(torch.stack([moments(draw, labels) for draw in logits]))


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("draws", [1, 4])
def test_the_slope_is_the_derivative_in_the_inverse_temperature(draws: int, holes: bool) -> None:
    logits, labels = logits_and_labels(draws=draws, holes=holes)
    inverse = torch.ones(len(labels), 1, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss_at(logits, labels, inverse).sum(), inverse)
    slope, _ = slope_of(logits, labels)
    torch.testing.assert_close(slope, expected[:, 0], rtol=1e-10, atol=1e-12)
    step = 1e-5
    above, below = (loss_at(logits, labels, torch.tensor(1 + sign * step, dtype=torch.float64)) for sign in (1, -1))
    torch.testing.assert_close(slope, (above - below) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("holes", [False, True])
def test_the_information_is_the_curvature_where_labels_are_drawn_from_the_model(holes: bool) -> None:
    """One draw: d²L/db² does not depend on the label; several draws: its mean over draws."""
    logits, labels = logits_and_labels(draws=3, holes=holes)
    _, information = slope_of(logits, labels)
    curvatures = []
    for draw in logits:
        inverse = torch.ones(len(labels), 1, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(loss_at(draw[None], labels, inverse).sum(), inverse, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), inverse)
        curvatures.append(second[:, 0])
    torch.testing.assert_close(information, torch.stack(curvatures).mean(0), rtol=1e-9, atol=1e-12)


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    logits, labels = logits_and_labels(holes=True)
    shifted = logits + torch.arange(len(labels), dtype=torch.float64)[None, :, None]
    for found, expected in zip(slope_of(shifted, labels), slope_of(logits, labels), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_half_precision_logits_are_widened_first() -> None:
    logits, labels = logits_and_labels(draws=1)
    half = logits[0].bfloat16()
    torch.testing.assert_close(moments(half, labels), moments(half.float(), labels), rtol=0, atol=0)
    assert moments(half, labels).dtype == torch.float64


@pytest.mark.parametrize("wanted", [0.9, 1.0, 1.12])
def test_one_scoring_step_near_the_optimum_finds_the_temperature(wanted: float) -> None:
    """Against Newton's fit on as many rows; labels are drawn from the averaged prediction at the true temperature."""
    logits, _ = logits_and_labels(rows=20_000, draws=2)
    generator = torch.Generator().manual_seed(1)
    truth = (logits / wanted).softmax(-1).mean(0)
    labels = torch.multinomial(truth, 1, generator=generator)[:, 0]
    slope, information = slope_of(logits, labels)
    zero = torch.zeros(1)
    record = HeldOutRecord().with_rows(slope, information, gain=zero, loss=zero)
    found, error = record.log_temperature(rows=len(labels))
    fitted = math.log(likeliest_temperature(logits.transpose(0, 1), labels))
    assert fitted == pytest.approx(math.log(wanted), abs=0.02)
    # The mean of the draws' variances bounds the curvature of their average from above, so that one step from T = 1 has
    # the right sign and falls short, here by up to a half.
    assert abs(found) <= abs(fitted) + 2 * error
    assert found == pytest.approx(fitted, rel=0.5, abs=2 * error)


def test_the_standard_error_is_that_of_repeated_samples() -> None:
    logits, _ = logits_and_labels(rows=500, draws=1)
    probs = logits[0].softmax(-1)
    found = []
    for seed in range(200):
        labels = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        slope, information = slope_of(logits, labels)
        zero = torch.zeros(1)
        found.append(HeldOutRecord().with_rows(slope, information, zero, zero).log_temperature(rows=500))
    estimates, errors = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert abs(estimates.mean().item()) < 3 * errors.mean().item() / math.sqrt(200)
    assert estimates.std().item() == pytest.approx(errors.mean().item(), rel=0.15)


def test_few_rows_are_drawn_to_no_temperature_by_the_prior() -> None:
    one = torch.ones(10_000)
    record = HeldOutRecord().with_rows(slope=one, information=one, gain=one, loss=one)
    assert record.log_temperature(rows=1)[0] == pytest.approx(1 / (1 + PRIOR_INFORMATION))
    assert record.log_temperature(rows=10_000)[0] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("slope", "expected"), [(50.0, math.e), (-50.0, 1 / math.e)])
def test_what_one_step_says_from_far_off_is_bounded(slope: float, expected: float) -> None:
    values = torch.full((32,), slope)
    record = HeldOutRecord().with_rows(values, 0.01 * torch.ones(32), gain=values, loss=values)
    assert abs(record.log_temperature(rows=32)[0]) > 10
    assert record.remaining_temperature(rows=32) == pytest.approx(expected)


def test_the_effective_rows_are_those_whose_mean_has_the_averages_variance() -> None:
    """Simulated: rows of variance 1, unequal measurements; Var(average) = 1 / effective rows."""
    sizes = [32, 32, 8, 32, 16]
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4000):
        record = HeldOutRecord()
        for size in sizes:
            values = torch.randn(size, generator=generator, dtype=torch.float64)
            record = record.with_rows(values, values, values, values)
        found.append(record.slope / record.weight)
    effective = record.effective_rows(rows=1000)
    assert torch.tensor(found).var().item() == pytest.approx(1 / effective, rel=0.1)
    assert effective < 96
    assert record.effective_rows(rows=20) == 20


def test_averages_forget_by_half_and_are_debiased() -> None:
    def rows(value: float) -> tuple[Tensor, ...]:
        return tuple(torch.full((2,), value) for _ in range(4))

    record = HeldOutRecord()
    for value in (8.0, 4.0, 2.0):
        record = record.with_rows(*rows(value))
    assert record.measurements == 3
    expected = (8.0 / 8 + 4.0 / 4 + 2.0 / 2) / (1 / 8 + 1 / 4 + 1 / 2)
    for name in ("slope", "information", "gain", "loss"):
        assert getattr(record, name) / record.weight == pytest.approx(expected)
    assert record.sampling_gain(rows=4)[0] == pytest.approx(expected)
    assert record.effective_rows(rows=100) == pytest.approx((7 / 8) ** 2 / ((1 / 64 + 1 / 16 + 1 / 4) / 2))


def test_the_spread_of_the_rows_is_the_standard_error() -> None:
    slope = torch.tensor([1.0, -1.0, 3.0, -3.0])
    one = torch.ones(4)
    record = HeldOutRecord().with_rows(slope, information=one, gain=slope, loss=one)
    assert record.log_temperature(rows=4)[1] == pytest.approx(math.sqrt(4 * 5.0) / (4 + PRIOR_INFORMATION))
    assert record.sampling_gain(rows=4) == (0.0, pytest.approx(math.sqrt(5.0 / 4)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["slope", "information", "gain", "loss"])
def test_a_measurement_that_is_not_finite_is_counted_and_says_nothing(bad: float, place: str) -> None:
    rows = {name: torch.ones(3) for name in ("slope", "information", "gain", "loss")}
    good = HeldOutRecord().with_rows(**rows)
    rows[place] = torch.tensor([1.0, bad, 1.0])
    after = good.with_rows(**rows)
    assert after.measurements == 2
    assert after.log_temperature(100) == good.log_temperature(100)
    assert after == good.without_rows()


def test_a_label_whose_choice_does_not_exist_is_not_finite() -> None:
    logits = torch.tensor([[1.0, -torch.inf], [1.0, 0.0]])
    slope, information = slope_of(logits[None].repeat(2, 1, 1), torch.tensor([1, 1]))
    zero = torch.zeros(2)
    assert HeldOutRecord().with_rows(slope, information, zero, zero) == HeldOutRecord(measurements=1)


def test_the_record_survives_as_plain_numbers() -> None:
    record = HeldOutRecord().with_rows(*(torch.rand(4, generator=torch.Generator().manual_seed(i)) for i in range(4)))
    plain = record.to_dict()
    assert {type(value) for value in plain.values()} <= {int, float}
    assert HeldOutRecord(**json.loads(json.dumps(plain))) == record


# The law of control -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_temperature", [-0.2, -0.1, 0.0, 0.1, 0.2])
@pytest.mark.parametrize("ratio", [0.11, 0.5, 1.0])
def test_within_one_standard_error_nothing_moves(log_temperature: float, ratio: float) -> None:
    found = steered_ess(100.0 * ratio, 100.0, log_temperature, error=0.2)
    assert found == pytest.approx(100.0 * ratio, rel=1e-12)


def test_before_the_first_measurement_nothing_moves() -> None:
    assert steered_ess(100.0, 100.0, *HeldOutRecord().log_temperature(rows=256)) == 100.0


def test_over_confidence_lowers_lambda_and_the_opposite_raises_it() -> None:
    lower, higher = (steered_ess(100.0, 100.0, sign * 0.3, error=0.1) for sign in (1, -1))
    assert math.log(lower / 100) == pytest.approx(-2 * 0.2)
    assert math.log(higher / 100) == pytest.approx(2 * 0.2)


@pytest.mark.parametrize("log_temperature", [5.0, -5.0])
def test_a_single_move_and_all_of_them_are_bounded(log_temperature: float) -> None:
    ess, path = 100.0, []
    for _ in range(12):
        moved = steered_ess(ess, 100.0, log_temperature, error=0.0)
        path.append(math.log(moved / ess))
        ess = moved
    assert path[0] == pytest.approx(math.copysign(LARGEST_MOVE, -log_temperature))
    assert max(map(abs, path)) <= LARGEST_MOVE + 1e-12
    assert ess / 100.0 == pytest.approx(BOUNDS[0] if log_temperature > 0 else BOUNDS[1])
    assert steered_ess(ess, 100.0, log_temperature, error=0.0) == pytest.approx(ess)


def test_it_returns_to_the_start_from_above_only_and_only_when_nothing_is_wrong() -> None:
    back = steered_ess(800.0, 100.0, 0.05, error=0.1)
    assert math.log(back / 100) == pytest.approx(RETURN * math.log(8.0))
    ess = 800.0
    for _ in range(200):
        ess = steered_ess(ess, 100.0, 0.0, error=0.1)
    assert ess == pytest.approx(100.0, rel=1e-4)
    assert ess >= 100.0
    assert steered_ess(20.0, 100.0, 0.05, error=0.1) == pytest.approx(20.0)
    assert steered_ess(400.0, 100.0, -0.3, error=0.1) > 400.0
