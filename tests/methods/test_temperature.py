"""Temperature scaling against scipy's optimum, its bounds and its errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from varlora.methods import cross_fitted, fit_temperature, with_temperatures
from varlora.methods.temperature import BOUNDS
from varlora.posterior import PointMass
from varlora.prediction import Prediction

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["temperature"]


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_the_oracles(case: dict[str, Any]) -> None:
    rows = [[-math.inf if logit is None else logit for logit in row] for row in case["logits"]]
    logits, labels = torch.tensor(rows, dtype=torch.float64), torch.tensor(case["labels"])
    expected = pytest.approx(case["expected"]["t_opt"], rel=1e-6)
    assert fit_temperature(logits, labels) == expected
    assert fit_temperature(logits.log_softmax(1), labels) == expected


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
        assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-9)
    else:
        assert fit_temperature(logits, labels) == BOUNDS[0]


def test_missing_choices_take_no_part() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 3, generator=generator), torch.randint(3, (50,), generator=generator)
    wider = torch.cat([logits, torch.full((50, 1), -torch.inf)], dim=1)
    assert fit_temperature(wider, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-12)


@pytest.mark.parametrize(("labels", "bound"), [([0, 1], BOUNDS[0]), ([1, 0], BOUNDS[1])])
def test_a_bound_is_said_to_be_one(labels: list[int], bound: float, caplog: pytest.LogCaptureFixture) -> None:
    assert fit_temperature(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor(labels)) == bound
    assert f"using {bound:g}" in caplog.text


def test_a_bound_names_whose_predictions_it_is_of(caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 0])
    fit_temperature(logits, labels, of="runs/a")
    assert caplog.messages == ["runs/a: the temperature that minimises the validation NLL lies beyond 100; using 100"]
    caplog.clear()
    prediction = Prediction(log_probs=logits[:, None].double().log_softmax(-1), labels=labels)
    with_temperatures(PointMass(mean={"w": torch.ones(1)}), {"mean": prediction}, of="runs/a")
    assert caplog.messages[0].startswith("runs/a, mode mean: the temperature")


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
        fit_temperature(logits, torch.tensor(labels, dtype=torch.long))


def test_several_draws_share_the_temperature_of_their_average() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 4, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (200,), generator=generator)
    labels = torch.where(torch.rand(200, generator=generator) < 0.5, logits.mean(1).argmax(1), labels)
    best = fit_temperature(logits, labels)

    def nll(temperature: float) -> float:
        probs = (logits / temperature).softmax(-1).mean(1)
        return -float(probs[torch.arange(200), labels].log().mean())

    tried = [nll(0.01 * 1.01**i) for i in range(926)]
    assert nll(best) <= min(tried) + 1e-12
    assert best != pytest.approx(fit_temperature(logits.mean(1), labels), rel=0.01)  # logits are not averaged


def test_one_draw_is_no_draws() -> None:
    logits, labels = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 3
    assert fit_temperature(logits[:, None], labels) == fit_temperature(logits, labels)


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
        fitted = fit_temperature(logits[inside], labels[inside])
        for row in outside:
            draws = [torch.softmax(draw / fitted, 0)[labels[row]] for draw in logits[row]]
            assert float(losses[row]) == pytest.approx(-math.log(sum(draws) / 4), rel=1e-12)
            assert float(temperatures[row]) == fitted
    assert len(set(temperatures.tolist())) == 4
    in_sample = fit_temperature(logits, labels)
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
