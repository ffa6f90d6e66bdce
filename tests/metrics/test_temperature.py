"""The likeliest temperature against scipy's optimum, and the rule by which few rows change little."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from varlora.metrics import (
    cross_fitted,
    fit_temperature,
    likeliest_temperature,
    nll,
    standard_errors_for,
)
from varlora.metrics.temperature import BOUNDS, FARTHEST, PRIOR_SD

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["temperature"]


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_the_oracles(case: dict[str, Any]) -> None:
    rows = [[-math.inf if logit is None else logit for logit in row] for row in case["logits"]]
    logits, labels = torch.tensor(rows, dtype=torch.float64), torch.tensor(case["labels"])
    expected = pytest.approx(case["expected"]["t_opt"], rel=1e-6)
    assert likeliest_temperature(logits, labels) == expected
    assert likeliest_temperature(logits.log_softmax(1), labels) == expected


@pytest.mark.parametrize("true", [0.02, 0.5, 7.0, 60.0])
def test_it_undoes_a_temperature(true: float) -> None:
    # Every class as often as its probability says: the NLL's minimum is at T = true exactly.
    odds = torch.tensor([[0.0, 3.0, -torch.inf]], dtype=torch.float64).exp().log()
    logits = odds.repeat(1000, 1)
    share = torch.sigmoid(torch.tensor(3.0 / true))
    labels = (torch.arange(1000) < round(float(share) * 1000)).long()
    at = labels.double().mean()
    if 0 < at < 1:
        expected = 3.0 / float(torch.logit(at))
        assert likeliest_temperature(logits, labels) == pytest.approx(expected, rel=1e-9)
    else:
        assert likeliest_temperature(logits, labels) == BOUNDS[0]


def test_missing_choices_take_no_part() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 3, generator=generator), torch.randint(3, (50,), generator=generator)
    wider = torch.cat([logits, torch.full((50, 1), -torch.inf)], dim=1)
    assert likeliest_temperature(wider, labels) == pytest.approx(likeliest_temperature(logits, labels), rel=1e-12)


@pytest.mark.parametrize(("labels", "bound"), [([0, 1], BOUNDS[0]), ([1, 0], BOUNDS[1])])
def test_a_bound_is_said_to_be_one(labels: list[int], bound: float, caplog: pytest.LogCaptureFixture) -> None:
    assert likeliest_temperature(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor(labels)) == bound
    assert f"using {bound:g}" in caplog.text


def test_a_bound_names_whose_predictions_it_is_of(caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 0])
    likeliest_temperature(logits, labels, of="runs/a")
    assert caplog.messages == ["runs/a: the temperature that minimises the validation NLL lies beyond 100; using 100"]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 2), [], r"need logits \(N, C\)"),
        (torch.zeros(2), [0, 0], r"need logits \(N, C\)"),
        (torch.zeros(2, 2), [0], r"got \(2, 2\) and \(1,\)"),
        (torch.zeros(2, 2), [0, -1], r"labels must be in 0\.\.1; rows without a label"),
        (torch.zeros(2, 2), [0, 2], r"labels must be in 0\.\.1"),
        (torch.tensor([[0.0, -torch.inf]]), [1], "logit -inf or NaN"),
        (torch.tensor([[0.0, torch.nan]]), [0], "logit -inf or NaN"),
    ],
)
def test_what_cannot_be_fitted_is_refused(logits: torch.Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        likeliest_temperature(logits, torch.tensor(labels, dtype=torch.long))


def test_several_draws_share_the_temperature_of_their_average() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 4, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (200,), generator=generator)
    labels = torch.where(torch.rand(200, generator=generator) < 0.5, logits.mean(1).argmax(1), labels)
    best = likeliest_temperature(logits, labels)

    def nll(temperature: float) -> float:
        probs = (logits / temperature).softmax(-1).mean(1)
        return -float(probs[torch.arange(200), labels].log().mean())

    tried = [nll(0.01 * 1.01**i) for i in range(926)]
    assert nll(best) <= min(tried) + 1e-12
    assert best != pytest.approx(likeliest_temperature(logits.mean(1), labels), rel=0.01)  # logits are not averaged


def test_one_draw_is_no_draws() -> None:
    logits, labels = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 3
    assert likeliest_temperature(logits[:, None], labels) == likeliest_temperature(logits, labels)


def test_cross_fitting_is_the_loop_over_folds() -> None:
    generator = torch.Generator().manual_seed(0)
    common = 3 * torch.randn(43, 1, 3, generator=generator, dtype=torch.float64)
    logits = common + torch.randn(43, 4, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((common[:, 0] / 2).softmax(1), 1, generator=generator)[:, 0]

    losses, temperatures = cross_fitted(logits, labels, folds=4, seed=2)

    order = torch.randperm(43, generator=torch.Generator().manual_seed(2)).tolist()
    for fold in range(4):
        inside = [row for row in range(43) if order[row] % 4 != fold]
        outside = [row for row in range(43) if order[row] % 4 == fold]
        assert len(outside) in (10, 11)
        fitted = likeliest_temperature(logits[inside], labels[inside], prior_sd=PRIOR_SD)
        for row in outside:
            draws = [torch.softmax(draw / fitted, 0)[labels[row]] for draw in logits[row]]
            assert float(losses[row]) == pytest.approx(-math.log(sum(draws) / 4), rel=1e-12)
            assert float(temperatures[row]) == fitted
    assert len(set(temperatures.tolist())) == 4
    in_sample = likeliest_temperature(logits, labels)
    flattered = -torch.log_softmax(logits / in_sample, 2).logsumexp(1)[torch.arange(43), labels] + math.log(4)
    assert float(losses.mean()) > float(flattered.mean())


@pytest.mark.parametrize("folds", [1, 6])
def test_folds_out_of_range(folds: int) -> None:
    with pytest.raises(ValueError, match=f"folds is {folds} for 5 rows"):
        cross_fitted(torch.randn(5, 1, 2), torch.zeros(5, dtype=torch.int64), folds=folds)


def test_folds_do_not_warn_of_bounds(caplog: pytest.LogCaptureFixture) -> None:
    logits = torch.tensor([[[2.0, 0.0]]]).repeat(10, 1, 1)
    cross_fitted(logits, torch.zeros(10, dtype=torch.int64))
    assert not caplog.text


def calibrated(rows: int, classes: int = 4, draws: int = 1, *, true: float = 1.0, seed: int = 0):
    """Logits (N, S, C), and labels drawn from their average at a true temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 1, classes, generator=generator, dtype=torch.float64)
    logits = logits + 0.5 * torch.randn(rows, draws, classes, generator=generator, dtype=torch.float64)
    probs = (logits / true).softmax(-1).mean(1)
    return logits, torch.multinomial(probs, 1, generator=generator)[:, 0]


def test_a_prior_is_a_penalty_on_log_t() -> None:
    logits, labels = calibrated(20, draws=3, true=2.0)
    found = likeliest_temperature(logits, labels, prior_sd=0.35)

    def cost(temperature: float) -> float:
        averaged = (logits / temperature).log_softmax(-1).logsumexp(1) - math.log(3)
        return 20 * float(nll(averaged, labels)) + math.log(temperature) ** 2 / (2 * 0.35**2)

    assert cost(found) <= min(cost(found * 1.001), cost(found / 1.001))
    assert 1 < found < likeliest_temperature(logits, labels)
    assert likeliest_temperature(logits, labels, prior_sd=1e-3) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="prior_sd is 0"):
        likeliest_temperature(logits, labels, prior_sd=0.0)


def test_the_score_is_rao_s_by_finite_differences() -> None:
    logits, labels = calibrated(9, classes=3, draws=4)

    def log_probs(inverse: float) -> torch.Tensor:
        return (logits * inverse).log_softmax(-1).logsumexp(1) - math.log(4)

    slopes = (log_probs(1 + 1e-5) - log_probs(1 - 1e-5)) / 2e-5
    variance = (log_probs(1).exp() * slopes.square()).sum()
    expected = abs(float(slopes[torch.arange(9), labels].sum() / variance.sqrt()))
    fit = fit_temperature(logits, labels)
    assert fit.distance == pytest.approx(expected, rel=1e-6)
    missing = torch.cat([logits, torch.full((9, 4, 1), -torch.inf)], dim=2)
    assert fit_temperature(missing, labels).distance == pytest.approx(expected, rel=1e-6)
    assert fit_temperature(torch.zeros(9, 4, 3), labels).distance == 0.0  # no temperature changes anything


@pytest.mark.parametrize("sure", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("rows", [6, 20, 40])
def test_few_rows_that_are_all_right_leave_the_confidence(rows: int, sure: float) -> None:
    """The likeliest T is 0 for every one of them."""
    logits = torch.zeros(rows, 2)
    logits[:, 0] = sure
    labels = torch.zeros(rows, dtype=torch.int64)
    fit = fit_temperature(logits, labels)
    assert fit.likeliest == BOUNDS[0]
    right = math.sqrt(rows * math.exp(-sure))  # z: a row's slope is 1 − p, its variance p (1 − p)
    assert fit.distance == pytest.approx(right, rel=1e-6)
    assert fit.kept is (right <= 2)
    assert fit.value >= 0.4
    assert f"from {rows} rows" in fit.sentence


@pytest.mark.parametrize("rows", [6, 20, 30, 50])
def test_of_few_rows_from_calibrated_predictions_one_in_twenty_changes_t(rows: int) -> None:
    """What it does to new rows is less than 0.003 nat on average; the likeliest T costs up to more than 1."""
    new, answers = calibrated(2000, seed=1)
    before = float(nll(new[:, 0].log_softmax(-1), answers))
    costs, changed, runs = [], 0, 150
    for seed in range(runs):
        found = fit_temperature(*calibrated(rows, seed=100 + seed), warn=False).value
        changed += found != 1
        costs.append(0.0 if found == 1 else float(nll((new[:, 0] / found).log_softmax(-1), answers)) - before)
    assert changed / runs <= 0.046 + 2 * math.sqrt(0.046 * 0.954 / runs)  # two sides of two standard errors
    assert sum(costs) / runs < 0.003


@pytest.mark.parametrize("true", [0.6, 2.0])
def test_many_rows_find_the_temperature(true: float) -> None:
    logits, labels = calibrated(2000, draws=2, true=true)
    fit = fit_temperature(logits, labels)
    assert fit.value == pytest.approx(true, rel=0.1)
    assert fit.value == pytest.approx(fit.likeliest, rel=0.03)
    assert (fit.rows, fit.needed) == (2000, standard_errors_for(2000))
    assert fit.sentence.startswith(f"T = {fit.value:.4g} from 2000 rows (")


def test_where_only_the_prior_holds_t_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = torch.tensor([[1.0, 0.0]]).repeat(200, 1), torch.zeros(200, dtype=torch.int64)
    found = fit_temperature(logits, labels, of="runs/a").value
    assert BOUNDS[0] < found < 1
    assert caplog.messages == [
        f"runs/a: the NLL of 200 validation row(s) falls beyond T = 0.01: only the prior holds T = {found:.3g}"
    ]
    caplog.clear()
    fit_temperature(logits[:6], labels[:6])  # kept at 1: no bound was come near to
    assert not caplog.text


def test_saturated_wrong_answers_are_as_far_from_calibrated_as_can_be() -> None:
    """A third of the answers is wrong at probability 0: the score's variance under the model is 0, too."""
    fit = fit_temperature(torch.tensor([[2e4, 0.0]]).repeat(300, 1), torch.tensor([0, 0, 1] * 100), warn=False)
    assert fit.distance == FARTHEST
    assert fit.value > 50


@pytest.mark.parametrize("logit", [0.3, 1.7])
def test_where_all_choices_are_alike_no_rounding_speaks_against_t(logit: float) -> None:
    fit = fit_temperature(torch.full((300, 7), logit), torch.zeros(300, dtype=torch.int64))
    assert (fit.distance, fit.value) == (0.0, 1.0)


def test_infinite_confidence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logit \+inf"):
        fit_temperature(torch.tensor([[math.inf, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
