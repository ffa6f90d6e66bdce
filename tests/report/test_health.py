"""A health report's numbers, by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from varlora.ivon.ess_control import BOUNDS
from varlora.metrics import cross_fitted
from varlora.metrics.selection import FEWEST_ROWS
from varlora.posterior import DiagonalGaussian, DropoutMasks, Mixture, PointMass, PosteriorMeta, PredictionConfig
from varlora.report.health import health_of
from varlora.report.health_text import remarks
from varlora.report.sampling import Paired, ValidationLogProbs, verdict_of

HELD_OUT: dict[str, Any] = {
    "source": "train",
    "rows": 64,
    "measurements": 12,
    "ess_start": 1000.0,
    "log_temperature": 0.3,
    "log_temperature_error": 0.1,
    "sampling_gain": 0.02,
    "sampling_gain_error": 0.01,
    "nll": 0.5,
}


def posterior(**meta: Any) -> DiagonalGaussian:
    given = {"method": "ivon", "num_examples": 10, "ess": 500.0, **meta}
    return DiagonalGaussian(mean={"w": torch.ones(2)}, precision={"w": torch.ones(2)}, meta=PosteriorMeta(**given))


def diagnosed(held_out: dict[str, Any] | None = None, **diagnostics: Any) -> DiagonalGaussian:
    found = {"held_out": held_out} if held_out is not None else {}
    return posterior(diagnostics={**found, **diagnostics})


def log_odds(p: list[Any]) -> Tensor:
    """(..., 2) log-probabilities of class 0 and 1 from those of class 0."""
    q = torch.tensor(p, dtype=torch.float64)
    return torch.stack([q, 1 - q], dim=-1).log()


def validation(mean: list[float], sampled: list[list[float]] | None, labels: list[int]) -> ValidationLogProbs:
    """Probabilities of class 0, by row; by row and draw."""
    return ValidationLogProbs(
        mean=log_odds([[p] for p in mean]),
        sampled=None if sampled is None else log_odds(sampled),
        labels=torch.tensor(labels),
    )


def many(*rows: tuple[float, list[float], int], times: int = 10) -> ValidationLogProbs:
    """The rows, repeated until they are enough."""
    repeated = list(rows) * times
    return validation([r[0] for r in repeated], [r[1] for r in repeated], [r[2] for r in repeated])


def calibrated(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) and labels drawn from their softmax, so that their best temperature is 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def test_what_a_temperature_gains_is_not_sampling_s() -> None:
    """The draws are nothing but the mean, three times flatter: at T = 1 they win .29 nat, at equal T nothing."""
    logits, labels = calibrated(4000)  # so many that the prior on T says little
    sure, flat = (3 * logits).log_softmax(-1)[:, None], logits.log_softmax(-1)[:, None].expand(-1, 8, -1)
    at_one = [-(p.gather(-1, labels[:, None, None].expand(-1, p.shape[1], 1))).mean() for p in (sure, flat)]
    assert float(at_one[0] - at_one[1]) > 0.25
    found = health_of(posterior(), samples=8, validation=ValidationLogProbs(mean=sure, sampled=flat, labels=labels))
    assert found.sampling is not None
    assert abs(found.sampling.difference) < 0.002
    assert found.verdict == "no gain"
    assert found.one_draw is not None
    assert found.temperatures is not None
    of_mean, of_draws = found.temperatures
    assert 2.4 < of_mean < 3.1  # shrunk a little towards 1, as the temperature of predictions is
    assert of_draws == pytest.approx(1, abs=0.1)


def test_a_gain_of_averaging_is_seen_at_equal_temperature() -> None:
    """Each draw's logits carry noise of their own, which the average over draws loses and a temperature cannot."""
    logits, labels = calibrated(400)
    noise = torch.randn(400, 17, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy = (logits[:, None] + 1.5 * noise).log_softmax(-1)
    stored = ValidationLogProbs(mean=noisy[:, :1], sampled=noisy[:, 1:], labels=labels)
    found = health_of(posterior(), samples=16, validation=stored)
    assert found.sampling is not None
    assert found.sampling.difference < -0.1
    assert found.verdict == "helps"


def test_the_stored_temperature_is_undone_first() -> None:
    logits, labels = calibrated(200)
    mean, drawn = logits[:, None], torch.stack([logits, 0.5 * logits], dim=1)
    plain, divided = (
        health_of(
            posterior(),
            samples=2,
            validation=ValidationLogProbs(
                mean=(mean / a).log_softmax(-1),
                sampled=(drawn / b).log_softmax(-1),
                labels=labels,
                mean_temperature=a,
                sampled_temperature=b,
            ),
        )
        for a, b in ((1.0, 1.0), (0.5, 3.0))
    )
    assert plain.sampling is not None
    assert divided.sampling is not None
    assert divided.sampling.difference == pytest.approx(plain.sampling.difference, abs=1e-9)
    assert divided.temperatures == pytest.approx(plain.temperatures, rel=1e-6)


def test_sampled_against_mean_and_single_draws_paired_over_rows() -> None:
    stored = many((0.5, [0.9, 0.7], 0), (0.8, [0.4, 0.6], 1))
    found = health_of(posterior(), samples=99, validation=stored)
    assert stored.sampled is not None
    at_mean, _ = cross_fitted(stored.mean, stored.labels)
    averaged, of_each = cross_fitted(stored.sampled, stored.labels)
    index = stored.labels[:, None, None]
    mean_alike, draws = (
        -(p / of_each[:, None, None]).log_softmax(-1).gather(-1, index.expand(-1, p.shape[1], 1))[..., 0].mean(1)
        for p in (stored.mean, stored.sampled)
    )
    assert found.sampling is not None
    assert found.one_draw is not None
    for paired, difference in ((found.sampling, averaged - at_mean), (found.one_draw, draws - mean_alike)):
        assert paired.difference == pytest.approx(float(difference.mean()))
        assert paired.standard_error == pytest.approx(float(difference.std()) / math.sqrt(20))
    assert (found.draws, found.sampling_rows, found.validation_rows, found.unknown) == (2, 20, 20, "")
    assert (found.sampling_source, found.in_training, found.can_be_tuned) == ("validation", False, True)


def test_how_far_draws_agree_on_labelled_rows_or_not() -> None:
    rows = (0.6, [0.9, 0.7], 0), (0.6, [0.9, 0.2], -100), (0.3, [0.9, 0.7], 1), (0.3, [0.3, 0.3], 0)
    told = health_of(posterior(), samples=2, validation=many(*rows)).agreement
    assert told is not None
    assert (told.rows, told.single, told.all_draws) == (40, 5 / 8, 2 / 4)

    def h(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    information = [h(0.8) - (h(0.9) + h(0.7)) / 2, h(0.55) - (h(0.9) + h(0.2)) / 2, h(0.8) - (h(0.9) + h(0.7)) / 2, 0]
    assert told.mutual_information == pytest.approx(sum(information) / 4)


def test_rows_without_a_label_have_no_loss() -> None:
    labelled = many((0.5, [0.9, 0.7], 0), (0.8, [0.4, 0.6], 1))
    others = many((0.5, [0.9, 0.7], 0), (0.8, [0.4, 0.6], 1), (0.01, [0.5, 0.5], -100))
    first, second = (health_of(posterior(), samples=2, validation=v) for v in (labelled, others))
    assert first.sampling == second.sampling
    assert (second.validation_rows, second.sampling_rows) == (20, 20)


@pytest.mark.parametrize(
    ("difference", "error", "rows", "expected"),
    [
        (-0.12, 0.03, 1000, "helps"),
        (-0.03, 0.03, 1000, "no gain"),
        (-0.0351, 0.03, 1000, "helps"),  # 1.05 standard errors
        (-0.0551, 0.03, 30, "no gain"),
        (-0.0601, 0.03, 30, "helps"),  # 2 of few rows
        (-0.0049, 0.0001, 1000, "no gain"),  # sure, and not worth the passes
        (-0.0051, 0.0001, 1000, "helps"),
        (0.0, 0.0, 1000, "no gain"),
        (0.0301, 0.03, 1000, "no gain"),
        (0.0351, 0.03, 1000, "hurts"),
        (0.001, 0.0, 1000, "no gain"),
        (math.nan, 0.1, 1000, "no gain"),
    ],
)
def test_standard_errors_and_a_least_gain_decide(difference: float, error: float, rows: int, expected: str) -> None:
    assert verdict_of(Paired(difference=difference, standard_error=error), rows) == expected


@pytest.mark.parametrize(("right", "learned"), [(40, False), (48, False), (55, True)])
def test_a_point_must_beat_the_most_frequent_answer_by_its_interval(right: int, learned: bool) -> None:
    """80 rows, half of them of one class: 40 of 80 right is no more than that answer gives."""
    labels = [0] * 40 + [1] * 40
    probs = [0.9 if (k < right) == (label == 0) else 0.1 for k, label in enumerate(labels)]
    for q in (posterior(), PointMass(mean={"w": torch.ones(1)})):
        found = health_of(q, samples=2, validation=validation(probs, None, labels)).learned
        assert found is not None
        assert (found.rows, found.right, found.most_frequent) == (80, right, 40)
        assert found.beats_most_frequent == learned
    few = health_of(posterior(), samples=2, validation=validation(probs[:19], None, labels[:19]))
    assert few.learned is not None
    assert (few.learned.rows, few.learned.right, few.learned.at_most_as_often) == (19, min(right, 19), False)


def test_stored_predictions_go_before_the_last_measurement_in_training() -> None:
    enough, few = many((0.5, [0.9, 0.7], 0), (0.8, [0.4, 0.6], 1)), many((0.5, [0.9, 0.7], 0), times=FEWEST_ROWS - 1)
    q = diagnosed(HELD_OUT)
    assert not health_of(q, samples=8, validation=enough).in_training
    for stored in (None, few):
        found = health_of(q, samples=8, validation=stored)
        assert found.sampling == Paired(difference=-0.02, standard_error=0.01)
        assert (found.sampling_rows, found.sampling_source, found.in_training) == (64, "train", True)
        assert found.one_draw is None
    assert health_of(q, samples=8).draws == 8
    assert health_of(q, samples=8).temperatures is None  # both were measured at T = 1
    at_temperature = {
        "sampling_gain_at_temperature": 0.001,
        "sampling_gain_at_temperature_error": 0.002,
        "mean_remaining_temperature": 1.4,
        "remaining_temperature": 1.1,
    }
    found = health_of(diagnosed({**HELD_OUT, **at_temperature}), samples=8)
    assert found.sampling == Paired(difference=-0.001, standard_error=0.002)
    assert (found.verdict, found.temperatures) == ("no gain", (1.4, 1.1))


def test_rows_that_were_not_asked_say_nothing() -> None:
    """256 held-out rows, of which a short training asked 36: the gain's error, and what it needs, is that of 36."""
    held_out = {**HELD_OUT, "rows": 256, "sampling_gain": 0.02, "sampling_gain_error": 0.012}
    assert health_of(diagnosed(held_out), samples=8).verdict == "helps"
    found = health_of(diagnosed({**held_out, "effective_rows": 36.0}), samples=8)
    assert (found.sampling_rows, found.held_out and found.held_out.rows, found.verdict) == (36, 36, "no gain")


@pytest.mark.parametrize(
    ("held_out", "stored", "reason"),
    [
        (None, None, "no predictions for validation rows"),
        ({**HELD_OUT, "rows": FEWEST_ROWS - 1}, None, "no predictions for validation rows"),
        ({**HELD_OUT, "effective_rows": FEWEST_ROWS - 1.0}, None, "no predictions for validation rows"),
        ({"source": "train", "rows": 64, "measurements": 0}, None, "no predictions for validation rows"),
        (None, many((0.5, [0.9], 0), times=19), "only 19 validation rows have a label, and it takes 20"),
        (None, many((0.5, [0.9], 0), times=1), "only 1 validation row has a label"),
        (None, many((0.5, [0.9], -100), times=30), "the validation rows have no labels"),
        (None, validation([0.5] * 30, None, [0] * 30), "predicted at the mean only"),
        (None, many((1.0, [0.9], 1), times=30), "probability 0"),
        (None, many((0.9, [1.0, 1.0], 1), times=30), "probability 0"),
    ],
)
def test_when_nothing_can_be_said(held_out: Any, stored: ValidationLogProbs | None, reason: str) -> None:
    found = health_of(diagnosed(held_out), samples=4, validation=stored)
    assert reason in found.unknown
    assert found.sampling is None


def test_a_draw_that_rules_the_answer_out_costs_no_finite_number_but_the_average_is_one() -> None:
    found = health_of(posterior(), samples=2, validation=many((0.5, [1.0, 0.5], 1), times=30))
    assert found.sampling is not None
    assert found.sampling.difference == pytest.approx(math.log(0.5) - math.log(0.25))
    assert found.one_draw is None


def test_a_choice_that_does_not_exist_changes_nothing() -> None:
    two = many((0.5, [0.9, 0.7], 0), (0.8, [0.4, 0.6], 1))

    def with_third(log_probs: Tensor) -> Tensor:
        return torch.cat([log_probs, torch.full_like(log_probs[..., :1], -torch.inf)], dim=-1)

    assert two.sampled is not None
    three = dataclasses.replace(two, mean=with_third(two.mean), sampled=with_third(two.sampled))
    assert health_of(posterior(), samples=2, validation=two) == health_of(posterior(), samples=2, validation=three)


def test_completions_have_losses_and_no_answers_to_agree_on() -> None:
    stored = ValidationLogProbs(
        mean=torch.full((30, 1, 1), -3.0, dtype=torch.float64),
        sampled=torch.tensor([[[-1.0], [-5.0]]], dtype=torch.float64).expand(30, 2, 1),
        labels=torch.zeros(30, dtype=torch.int64),
    )
    found = health_of(posterior(), samples=2, validation=stored)
    assert found.sampling is not None
    assert found.one_draw is not None
    assert found.sampling.difference == pytest.approx(-math.log((math.exp(-1) + math.exp(-5)) / 2) - 3)
    assert found.one_draw.difference == pytest.approx(0.0)
    assert (found.completions, found.agreement) == (True, None)


def test_why_no_rows_steered_lambda_is_kept() -> None:
    unsteered = {"source": None, "rows": 0, "measurements": 0, "why": "5 rows say too little"}
    found = health_of(diagnosed(unsteered), samples=4)
    assert (found.unsteered, found.held_out, found.sampling) == ("5 rows say too little", None, None)
    assert "λ was not steered by held-out rows: 5 rows say too little." in remarks(found)
    assert not any("steered" in told for told in remarks(health_of(diagnosed(HELD_OUT), samples=4)))


def test_where_lambda_began_and_ended() -> None:
    found = health_of(diagnosed(HELD_OUT), samples=4)
    assert (found.ess, found.ess_start, found.num_examples, found.bound) == (500.0, 1000.0, 10, None)
    assert found.held_out is not None
    assert (found.held_out.source, found.held_out.rows, found.held_out.off) == ("train", 64, True)
    still = health_of(diagnosed({**HELD_OUT, "log_temperature": -0.2}), samples=4).held_out
    assert still is not None
    assert not still.off  # two standard errors, no more


@pytest.mark.parametrize(
    ("ratio", "bound"),
    [(BOUNDS[0], "lower"), (BOUNDS[0] * 1.001, None), (BOUNDS[1], "upper"), (BOUNDS[1] * 0.999, None)],
)
def test_a_bound_of_lambda_is_seen(ratio: float, bound: str | None) -> None:
    q = posterior(ess=ratio * 1000.0, diagnostics={"held_out": HELD_OUT})
    assert health_of(q, samples=4).bound == bound
    assert health_of(posterior(ess=ratio * 1000.0), samples=4).bound is None


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({"overall": 0.0, "by_tensor": {"a": 0.0, "b": 0.0}}, (0.0, True)),
        ({"overall": 0.0, "by_tensor": {"a": 0.0, "b": 0.1}}, (0.0, False)),
        ({"overall": 0.3, "by_tensor": {"a": 0.3}}, (0.3, False)),
        (None, (None, False)),
    ],
)
def test_h_was_kept_if_it_moved_nowhere(moved: Any, expected: tuple[float | None, bool]) -> None:
    found = health_of(diagnosed(hessian_moved=moved) if moved else posterior(), samples=4)
    assert (found.hessian_moved, found.hessian_kept) == expected


def test_what_was_measured_before_a_later_operation_is_not_of_this_posterior() -> None:
    operations = ({"op": "tune"},), ({"op": "prune", "fraction": 0.5}, {"op": "tune"})
    tuned, pruned = (
        health_of(posterior(diagnostics={"held_out": HELD_OUT}, history=history), samples=4) for history in operations
    )
    assert tuned.sampling is not None
    assert not tuned.derived
    assert (pruned.sampling, pruned.held_out, pruned.ess_start, pruned.derived) == (None, None, None, True)


def test_kinds_without_a_gaussian() -> None:
    ones = {"w": torch.ones(2)}
    stored = many((0.5, [0.9, 0.7], 0), (0.8, [0.4, 0.6], 1))
    point = health_of(PointMass(mean=ones), samples=10, validation=dataclasses.replace(stored, sampled=None))
    assert (point.draws, point.sampling, point.unknown, point.groups) == (1, None, "", ())
    masks = health_of(DropoutMasks(mean=ones, rate=0.25), samples=10, validation=stored)
    assert (masks.rate, masks.groups) == (0.25, ())
    members = health_of(Mixture(components=(PointMass(mean=ones),) * 2), samples=10, validation=stored)
    assert (members.draws, members.groups) == (2, ())
    assert masks.sampling == members.sampling == health_of(posterior(), samples=10, validation=stored).sampling


def test_a_tuned_posterior_is_reported_as_trained() -> None:
    tuned = PredictionConfig(mode="mean", temperature=0, logit_temperature=3.0)
    stored = many((0.5, [0.9, 0.7], 0), (0.8, [0.4, 0.6], 1))
    before = health_of(posterior(), samples=2, validation=stored)
    after = health_of(posterior(tuned=tuned, history=({"op": "tune"},)), samples=2, validation=stored)
    assert after == dataclasses.replace(before, tuned=True)


def test_the_logit_temperature_is_that_of_the_methods_own_predictions() -> None:
    by_mode = {"samples": 2.0, "linearised": 3.0}
    plain, linearised = (
        health_of(posterior(logit_temperatures=by_mode, linearised=how), samples=2) for how in (False, True)
    )
    assert (plain.logit_temperature, linearised.logit_temperature) == (2.0, 3.0)


@pytest.mark.parametrize("wrong", [{"labels": torch.zeros(3).long()}, {"mean": log_odds([[0.5, 0.5]] * 20)}])
def test_predictions_of_other_rows_are_refused(wrong: dict[str, Tensor]) -> None:
    right = many((0.5, [0.9, 0.7], 0), (0.8, [0.4, 0.6], 1))
    with pytest.raises(ValueError, match="for the same rows"):
        dataclasses.replace(right, **wrong)
