"""The law that steers λ: its derivatives against autograd, its estimate against a fitted temperature, its bounds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import pytest
import torch
from false_alarms import World, plan_of, rates
from torch import Tensor, nn

from varlora.ivon.calibration_slope import PREDICTED_DRAWS, calibration_slope, moments, told_by
from varlora.ivon.ess_control import BOUNDS, FALSE_ALARMS, RETURN, steered_ess
from varlora.metrics import likeliest_temperature
from varlora.posterior.held_out_record import ERRORS, LARGEST_MOVE, PRIOR_INFORMATION, HeldOutRecord
from varlora.prediction.prediction_setup import SAMPLES

NAMES = ("slope", "information", "gain", "loss", "mean_slope", "mean_information")


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


def rows_of(slope: Tensor, information: Tensor | float = 1.0, **others: Tensor) -> dict[str, Tensor]:
    """What `with_rows` takes: the mean's words are the draws', and nothing is gained, unless they are given."""
    same = information if isinstance(information, Tensor) else torch.full_like(slope, information)
    zero = torch.zeros_like(slope)
    rows = {"slope": slope, "information": same, "gain": zero, "loss": zero, "mean_slope": slope}
    return {**rows, "mean_information": same, **others}


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
    record = HeldOutRecord().with_rows(**rows_of(slope, information))
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
        found.append(HeldOutRecord().with_rows(**rows_of(slope, information)).log_temperature(rows=500))
    estimates, errors = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert abs(estimates.mean().item()) < 3 * errors.mean().item() / math.sqrt(200)
    assert estimates.std().item() == pytest.approx(errors.mean().item(), rel=0.15)


def test_few_rows_are_drawn_to_no_temperature_by_the_prior() -> None:
    record = HeldOutRecord().with_rows(**rows_of(torch.ones(10_000)))
    assert record.log_temperature(rows=1)[0] == pytest.approx(1 / (1 + PRIOR_INFORMATION))
    assert record.log_temperature(rows=10_000)[0] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("slope", "expected"), [(50.0, math.e), (-50.0, 1 / math.e)])
def test_what_one_step_says_from_far_off_is_bounded(slope: float, expected: float) -> None:
    record = HeldOutRecord().with_rows(**rows_of(torch.full((32,), slope), 0.01))
    assert abs(record.log_temperature(rows=32)[0]) > 10
    assert record.remaining_temperature(rows=32) == pytest.approx(expected)


@pytest.mark.parametrize("of", ["samples", "mean"])
def test_a_temperature_is_what_lies_beyond_two_standard_errors(of: Any) -> None:
    record = HeldOutRecord().with_rows(**rows_of(torch.full((100,), 0.5)))
    log_temperature, error = record.log_temperature(rows=100, of=of)
    assert (log_temperature, error) == (pytest.approx(50 / 104), pytest.approx(1 / math.sqrt(104)))
    expected = log_temperature - ERRORS * error
    assert math.log(record.remaining_temperature(rows=100, of=of)) == pytest.approx(expected)
    few = HeldOutRecord().with_rows(**rows_of(torch.full((5,), 0.5)))
    assert few.remaining_temperature(rows=5, of=of) == 1.0


# Ten draws out of four ----------------------------------------------------------------------------------------


def expected_slope(logits: Tensor, noise: float, pairs: int, truth: Tensor, generator: torch.Generator) -> Tensor:
    """E[slope] over labels from `truth`, of averages over opposite pairs of draws, in the plainest way."""
    e = noise * torch.randn(pairs, *logits.shape, generator=generator, dtype=torch.float64)
    draws = torch.cat([logits + e, logits - e])
    p = draws.softmax(-1)
    by_label = (p / p.sum(0) * ((p * draws).sum(-1, keepdim=True) - draws)).sum(0)
    return (truth * by_label).sum(-1).mean()


@pytest.mark.parametrize("noise", [0.5, 1.2])
def test_four_draws_say_what_averages_of_ten_ask_for(noise: float) -> None:
    """Over 20 000 rows whose labels are expected, not drawn: two pairs alone are off by .03 and more at noise 1.2."""
    assert PREDICTED_DRAWS == SAMPLES
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    e = noise * torch.randn(60, *logits.shape, generator=generator, dtype=torch.float64)
    truth = torch.stack([(logits + e).softmax(-1), (logits - e).softmax(-1)]).mean((0, 1))
    of_ten, of_four = (expected_slope(logits, noise, pairs, truth, generator) for pairs in (5, 2))
    e = noise * torch.randn(2, *logits.shape, generator=generator, dtype=torch.float64)
    draws = torch.stack([logits + e, logits - e], dim=1)
    labels = [torch.full((len(logits),), c) for c in range(4)]
    told = [
        told_by(moments(logits, y), torch.stack([torch.stack([moments(f, y) for f in pair]) for pair in draws]))
        for y in labels
    ]
    found = sum((truth[:, c] * told[c]["slope"]).mean() for c in range(4))
    assert found == pytest.approx(of_ten.item(), abs=0.006)
    if noise == 1.2:
        assert of_four - of_ten > 0.02
    information = sum((truth[:, c] * told[c]["mean_information"]).mean() for c in range(4))
    p = logits.softmax(-1)
    variance = (p * logits.square()).sum(-1) - (p * logits).sum(-1).square()
    assert information == pytest.approx(variance.mean().item(), rel=1e-6)


def test_the_extrapolation_is_linear_in_the_inverse_number_of_pairs() -> None:
    logits, labels = logits_and_labels(draws=4, rows=20)
    at_mean = moments(logits.mean(0), labels)
    pairs = torch.stack([moments(draw, labels) for draw in logits]).unflatten(0, (2, 2))
    told = told_by(at_mean, pairs)
    two, _ = slope_of(logits, labels)
    one = (slope_of(logits[:2], labels)[0] + slope_of(logits[2:], labels)[0]) / 2
    torch.testing.assert_close(told["slope"], 1.6 * two - 0.6 * one)
    loss = [loss_at(part, labels, torch.ones(len(labels), 1)) for part in (logits, logits[:2], logits[2:])]
    torch.testing.assert_close(told["loss"], 1.6 * loss[0] - 0.3 * (loss[1] + loss[2]))
    torch.testing.assert_close(told["gain"], -at_mean[0] - told["loss"])
    mean_slope, mean_information = slope_of(logits.mean(0, keepdim=True), labels)
    torch.testing.assert_close(told["mean_slope"], mean_slope)
    torch.testing.assert_close(told["mean_information"], mean_information)


def test_the_gain_at_the_temperatures_is_that_of_scaled_logits() -> None:
    """Noise that is too small and a mean as over-confident: the temperature's gain is not told as sampling's."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / 1.25).softmax(-1), 1, generator=generator)[:, 0]
    e = 0.02 * torch.randn(2, *logits.shape, generator=generator, dtype=torch.float64)
    draws = torch.stack([logits + e, logits - e], dim=1)
    told = told_by(
        moments(logits, labels), torch.stack([moments(f, labels) for f in draws.flatten(0, 1)]).unflatten(0, (2, 2))
    )
    record = HeldOutRecord().with_rows(**told)
    t_s, t_m = (record.remaining_temperature(4000, of=of) for of in ("samples", "mean"))
    assert t_s == pytest.approx(1.18, abs=0.05)
    assert t_m == pytest.approx(t_s, abs=0.01)
    mean = nn.functional.cross_entropy(logits / t_m, labels)
    averaged = (draws.flatten(0, 1) / t_s).softmax(-1).mean(0)
    exact = mean - nn.functional.nll_loss(averaged.log(), labels)
    gain, error = record.sampling_gain_at_temperature(4000)
    assert gain == pytest.approx(exact.item(), abs=2e-4)
    assert abs(gain) < 3 * error + 1e-4
    untouched = dataclasses.replace(record, slope=0.0, mean_slope=0.0)
    assert untouched.sampling_gain_at_temperature(4000) == untouched.sampling_gain(4000)


# Averages -----------------------------------------------------------------------------------------------------


def test_the_effective_rows_are_those_whose_mean_has_the_averages_variance() -> None:
    """Rows of variance 1, unequal measurements: Var(average) = Σ (∂ average / ∂ row)² = 1 / effective rows."""
    sizes = [32, 32, 8, 32, 16]
    variance = 0.0
    for one in torch.eye(sum(sizes), dtype=torch.float64):
        record = HeldOutRecord()
        for values in one.split(sizes):
            record = record.with_rows(**rows_of(values))
        variance += (record.slope / record.weight) ** 2
    effective = record.effective_rows(rows=1000)
    assert variance == pytest.approx(1 / effective)
    assert effective < 96
    assert record.effective_rows(rows=20) == 20


def test_averages_forget_by_half_and_are_debiased() -> None:
    def rows(value: float) -> dict[str, Tensor]:
        return dict.fromkeys(NAMES, torch.full((2,), value))

    record = HeldOutRecord()
    for value in (8.0, 4.0, 2.0):
        record = record.with_rows(**rows(value))
    assert record.measurements == 3
    expected = (8.0 / 8 + 4.0 / 4 + 2.0 / 2) / (1 / 8 + 1 / 4 + 1 / 2)
    for name in NAMES:
        assert getattr(record, name) / record.weight == pytest.approx(expected)
    assert record.sampling_gain(rows=4)[0] == pytest.approx(expected)
    assert record.effective_rows(rows=100) == pytest.approx((7 / 8) ** 2 / ((1 / 64 + 1 / 16 + 1 / 4) / 2))


@pytest.mark.parametrize(("information", "variance"), [(1.0, 5.0), (5.0, 5.0), (20.0, 20.0)])
def test_the_error_is_the_rows_spread_or_what_the_model_says_it_should_be(information: float, variance: float) -> None:
    """A few rows that happen to agree, or one row again and again, are no certainty."""
    slope = torch.tensor([1.0, -1.0, 3.0, -3.0])
    record = HeldOutRecord().with_rows(**rows_of(slope, information, gain=slope))
    total = 4 * information + PRIOR_INFORMATION
    assert record.log_temperature(rows=4)[1] == pytest.approx(math.sqrt(4 * variance + 4) / total)
    assert record.sampling_gain(rows=4) == (0.0, pytest.approx(math.sqrt(5.0 / 4)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", NAMES)
def test_a_measurement_that_is_not_finite_is_counted_and_says_nothing(bad: float, place: str) -> None:
    rows = {name: torch.ones(3) for name in NAMES}
    good = HeldOutRecord().with_rows(**rows)
    rows[place] = torch.tensor([1.0, bad, 1.0])
    after = good.with_rows(**rows)
    assert after.measurements == 2
    assert after.log_temperature(100) == good.log_temperature(100)
    assert after == good.without_rows()


def test_a_label_whose_choice_does_not_exist_is_not_finite() -> None:
    logits = torch.tensor([[1.0, -torch.inf], [1.0, 0.0]])
    slope, information = slope_of(logits[None].repeat(2, 1, 1), torch.tensor([1, 1]))
    assert HeldOutRecord().with_rows(**rows_of(slope, information)) == HeldOutRecord(measurements=1)


def test_the_record_survives_as_plain_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    record = HeldOutRecord().with_rows(**{name: torch.rand(4, generator=generator) for name in NAMES})
    plain = record.to_dict()
    assert {type(value) for value in plain.values()} <= {int, float}
    assert HeldOutRecord.from_dict(json.loads(json.dumps(plain))) == record


def test_a_record_of_four_draws_is_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    old = {"measurements": 7, "weight": 0.99, "inverse_rows": 0.01, "slope": -3.0, "slope_square": 9.5}
    old |= {"information": 1.0, "gain": 0.1, "gain_square": 0.2, "loss": 1.0}
    assert HeldOutRecord.from_dict(old) == HeldOutRecord(measurements=7)
    assert "of an older version, which averaged 4 draws" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tokens": 3.0}, "has tokens, which this version"), ({"slope": None}, "has no slope. The checkpoint is damaged")],
)
def test_a_record_that_cannot_be_read_is_refused(change: dict[str, Any], message: str) -> None:
    plain = {k: v for k, v in (HeldOutRecord().to_dict() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        HeldOutRecord.from_dict(plain)


# The law of control -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "noise", "withheld"),
    [(5, 0.0, False), (30, 1.2, True), (64, 0.5, False), (150, 0.0, False), (256, 1.2, True)],
)
def test_calibrated_rows_seldom_move_lambda_in_a_whole_training(rows: int, noise: float, withheld: bool) -> None:
    """benchmarks/false_alarms.py, on 300 trainings: before, λ left in a third to three quarters of them."""
    plan = plan_of(rows, withheld=withheld, rows_per_step=16, steps=1000)
    found = rates(World(rows=rows, noise=noise), plan, steps=1000, runs=300)
    assert found.ever <= FALSE_ALARMS
    assert found.finally_ <= found.ever
    assert found.told <= FALSE_ALARMS
    assert abs(math.log(found.temperature)) < 0.01
    if rows == 5:
        assert max(found.ever, found.told) < 0.01


def test_an_over_confident_model_is_still_steered() -> None:
    plan = plan_of(150, withheld=False, rows_per_step=16, steps=1000)
    found = [rates(World(rows=150, noise=0.5, temperature=t), plan, steps=1000, runs=100).finally_ for t in (1.5, 2.0)]
    assert found[0] > 0.5
    assert found[1] > 0.9


def test_the_fewer_the_rows_the_less_they_steer_without_a_cliff() -> None:
    asked = [HeldOutRecord().with_rows(**rows_of(torch.full((n,), 0.8))).beyond_chance(n) for n in range(1, 257)]
    assert asked[:5] == [0.0] * 5
    assert asked == sorted(asked)
    assert asked[-1] == pytest.approx(0.66, abs=0.02)
    assert max(b - a for a, b in itertools.pairwise(asked)) < 0.05


@pytest.mark.parametrize("ratio", [0.11, 0.5, 1.0])
def test_where_nothing_is_beyond_chance_nothing_moves(ratio: float) -> None:
    assert steered_ess(100.0 * ratio, 100.0, excess=0.0) == pytest.approx(100.0 * ratio, rel=1e-12)


def test_before_the_first_measurement_nothing_moves() -> None:
    assert steered_ess(100.0, 100.0, HeldOutRecord().beyond_chance(rows=256)) == 100.0


def test_over_confidence_lowers_lambda_and_the_opposite_raises_it() -> None:
    lower, higher = (steered_ess(100.0, 100.0, sign * 0.2) for sign in (1, -1))
    assert math.log(lower / 100) == pytest.approx(-2 * 0.2)
    assert math.log(higher / 100) == pytest.approx(2 * 0.2)


@pytest.mark.parametrize("excess", [5.0, -5.0])
def test_a_single_move_and_all_of_them_are_bounded(excess: float) -> None:
    ess, path = 100.0, []
    for _ in range(12):
        moved = steered_ess(ess, 100.0, excess)
        path.append(math.log(moved / ess))
        ess = moved
    assert path[0] == pytest.approx(math.copysign(LARGEST_MOVE, -excess))
    assert max(map(abs, path)) <= LARGEST_MOVE + 1e-12
    assert ess / 100.0 == pytest.approx(BOUNDS[0] if excess > 0 else BOUNDS[1])
    assert steered_ess(ess, 100.0, excess) == pytest.approx(ess)


def test_it_returns_to_the_start_from_above_only_and_only_when_nothing_is_wrong() -> None:
    back = steered_ess(800.0, 100.0, 0.0)
    assert math.log(back / 100) == pytest.approx(RETURN * math.log(8.0))
    ess = 800.0
    for _ in range(200):
        ess = steered_ess(ess, 100.0, 0.0)
    assert ess == pytest.approx(100.0, rel=1e-4)
    assert ess >= 100.0
    assert steered_ess(20.0, 100.0, 0.0) == pytest.approx(20.0)
    assert steered_ess(400.0, 100.0, -0.2) > 400.0
