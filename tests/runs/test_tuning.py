"""The stages of the choice, on predictions whose best setting is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from varlora.metrics import cross_fitted, likeliest_temperature, paired_error
from varlora.metrics.temperature import PRIOR_SD
from varlora.posterior import PredictionConfig
from varlora.runs.space import Space
from varlora.runs.tuning import Candidate, Choice, choose, losses

ROWS = 400
TAUS = (0.0, 0.25, 1.0, 4.0)


def drawn(samples: int | None, prune: float = 0.0) -> PredictionConfig:
    return PredictionConfig(samples=samples, prune=prune)


def space(**options: Any) -> Space:
    given: dict[str, Any] = {
        "temperatures": TAUS,
        "samples": (2, 4, 8, 32),
        "fractions": (),
        "by": "snr",
        "fit_logits": True,
        "mode": "samples",
        "start": 1.0,
        "draws": 4,
        "logit_temperatures": {},
    }
    return Space(**{**given, **options})


class World:
    """Logits of four classes, N(mean, τ noise²) for every draw and row, and labels by the truth's logits."""

    def __init__(self, *, sharpness: float = 1.0, noise: float = 0.0, rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(0)
        truth = 2 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
        self.labels = torch.multinomial(truth.softmax(1), 1, generator=generator)[:, 0]
        self.mean = truth * sharpness
        self.noise = noise * torch.randn(rows, 32, 4, generator=generator, dtype=torch.float64)
        self.asked: list[tuple[float, int | None, float]] = []

    def __call__(self, config: PredictionConfig) -> Tensor:
        self.asked.append((config.temperature, config.samples, config.prune))
        if config.mode == "mean":
            return self.mean.log_softmax(1)[:, None]
        return (self.mean[:, None] + math.sqrt(config.temperature) * self.noise[:, : config.samples]).log_softmax(2)

    def choose(self, **options: Any) -> Choice:
        return choose(self, self.labels, space(**options))


def settings_of(candidate: Candidate) -> dict[str, Any]:
    return {"stage": candidate.stage, "fitted": candidate.fitted, **candidate.config.to_dict()}


def of(choice: Choice, **settings: Any) -> Candidate:
    found = [c for c in choice.candidates if all(settings_of(c)[name] == value for name, value in settings.items())]
    assert len(found) == 1
    return found[0]


def test_a_well_scaled_posterior_is_kept_where_noise_would_win() -> None:
    world = World(noise=0.05, rows=100)
    choice = world.choose(samples=(4,))
    assert choice.kept
    assert choice.chosen.config.temperature == 1
    assert (choice.difference, choice.nll_after) == (0.0, choice.nll_before)
    lowest = min(choice.candidates, key=lambda c: c.nll)
    assert not lowest.default
    assert lowest.nll < choice.nll_before
    assert lowest.difference + lowest.standard_error > 0


def test_overconfident_logits_are_divided() -> None:
    world = World(sharpness=3.0, noise=0.05)
    choice = world.choose(samples=(4,))
    chosen = choice.chosen
    assert (chosen.config.temperature, chosen.fitted) == (1.0, True)  # no τ is needed beside it
    assert chosen.config.logit_temperature == likeliest_temperature(world(drawn(4)), world.labels, prior_sd=PRIOR_SD)
    assert 2.5 < chosen.config.logit_temperature < 3.5
    honest = cross_fitted(world(drawn(4)), world.labels)[0]
    assert choice.nll_after == float(honest.mean())
    before = losses(world(drawn(4)), world.labels)
    assert (choice.difference, choice.standard_error) == paired_error(honest, before)
    assert of(choice, temperature=1.0, fitted=False).nll == choice.nll_before == float(before.mean())


def test_without_a_temperature_of_the_logits() -> None:
    choice = World(sharpness=3.0, noise=0.05).choose(fit_logits=False)
    assert not any(candidate.fitted for candidate in choice.candidates)
    assert choice.chosen.config.logit_temperature == 1.0


def test_an_underconfident_posterior_predicts_at_its_mean() -> None:
    """The mean is calibrated, and every draw blurs it."""
    world = World(noise=4.0)
    choice = world.choose(temperatures=(0.0, 1.0, 4.0))
    assert (choice.chosen.config.mode, choice.chosen.config.samples) == ("mean", None)
    assert choice.chosen.config.logit_temperature == 1.0
    assert not choice.kept
    assert choice.difference < -choice.standard_error
    assert choice.fewest_samples is None  # nothing is drawn
    assert all(candidate.stage == "scale" for candidate in choice.candidates)


def test_the_tau_nearest_to_1_of_those_as_good() -> None:
    """All but the default lose 0.7 nat, and differ by noise; the mean happens to be lowest."""
    generator = torch.Generator().manual_seed(1)
    noise = 0.05 * torch.randn(6, 100, generator=generator, dtype=torch.float64)
    noise -= noise.mean(1, keepdim=True)
    luck = {0.0: 0.0, 0.25: 0.003, 0.5: 0.002, 1.0: 0.7, 2.0: 0.001, 4.0: 0.001}

    def predict(config: PredictionConfig) -> Tensor:
        at = list(luck).index(config.temperature)
        right = -(0.5 + luck[config.temperature] + noise[at])
        return torch.stack([right, torch.log1p(-right.exp())], 1)[:, None]

    def chosen(*temperatures: float) -> float:
        options = space(temperatures=temperatures, fit_logits=False, samples=(4,))
        return choose(predict, torch.zeros(100, dtype=torch.int64), options).chosen.config.temperature

    assert chosen(0.0, 0.25, 0.5, 1.0, 4.0) == 0.5
    assert chosen(0.0, 0.25, 0.5, 1.0, 2.0, 4.0) == 2.0  # as near as a half, and lower
    assert chosen(0.0, 0.25, 1.0) == 0.25
    assert chosen(0.0, 1.0) == 0.0


def test_as_many_more_draws_as_help() -> None:
    world = World(sharpness=1.5, noise=3.0)
    choice = world.choose(temperatures=(1.0,), fit_logits=False, samples=(2, 4, 8, 32), draws=4)
    assert choice.chosen.config.samples == 32
    assert choice.fewest_samples == 32
    assert of(choice, samples=4, stage="draws").default
    assert choice.nll_after == float(losses(world(drawn(32)), world.labels).mean())
    one = of(choice, samples=8)
    assert (one.difference, one.standard_error) == paired_error(
        losses(world(drawn(8)), world.labels),
        losses(world(drawn(4)), world.labels),
    )


def test_fewer_draws_are_said_to_do_and_are_not_chosen_for_luck() -> None:
    world = World(noise=0.3)
    lucky = world.noise.clone()
    lucky[:, :2] = 0.0  # two draws at the mean, the others blurred
    lucky[:, 2:] *= 10
    world.noise = lucky
    choice = world.choose(temperatures=(1.0,), fit_logits=False, samples=(2, 4))
    assert of(choice, samples=2).difference + of(choice, samples=2).standard_error < 0
    assert choice.kept
    assert (choice.chosen.config.samples, choice.fewest_samples) == (4, 2)


def test_every_prediction_is_asked_for_once_or_with_more_draws() -> None:
    world = World(noise=0.05)
    world.choose()
    assert world.asked == [(0.0, None, 0.0), (0.25, 4, 0.0), (1.0, 4, 0.0), (4.0, 4, 0.0), (1.0, 32, 0.0)]


def test_a_temperature_that_makes_votes_is_not_tried() -> None:
    """All answers are right, so that the best T is the smallest."""
    logits = torch.zeros(ROWS, 4, 2, dtype=torch.float64)
    logits[..., 0] = 1.0
    choice = choose(lambda *_: logits.log_softmax(2), torch.zeros(ROWS, dtype=torch.int64), space(samples=(4,)))
    assert not any(candidate.fitted for candidate in choice.candidates)
    assert choice.kept


def test_what_training_left_on_the_logits_is_the_default() -> None:
    world = World(sharpness=3.0, noise=0.05)
    left = {"samples": 3.0, "mean": 2.0}
    choice = world.choose(logit_temperatures=left, samples=(4,))
    assert choice.kept
    assert choice.nll_before == float(losses(world(drawn(4)), world.labels, 3.0).mean())
    assert of(choice, temperature=0.0, fitted=False).config.logit_temperature == 2.0


def test_a_run_that_predicts_at_its_mean_starts_there() -> None:
    choice = World(noise=0.05, rows=100).choose(start=0.0, samples=(4,))
    assert choice.kept
    assert (choice.chosen.config.mode, choice.chosen.config.samples) == ("mean", None)
    overconfident = World(sharpness=1.0, noise=2.0)
    overconfident.mean = overconfident.mean * 2.5
    drawn = overconfident.choose(start=0.0, fit_logits=False, temperatures=(0.0, 1.0))
    assert (drawn.chosen.config.temperature, drawn.chosen.config.mode) == (1.0, "samples")


class Pruned(World):
    """A posterior whose predictions cost something beyond 30 % pruned."""

    def __call__(self, config: PredictionConfig) -> Tensor:
        found = super().__call__(config)
        return (found * (1.0 if config.prune <= 0.3 else 0.3)).log_softmax(2)


@pytest.mark.parametrize("applied", [False, True])
def test_pruning_is_said_and_applied_on_demand(applied: bool) -> None:
    world = Pruned(noise=0.05)
    choice = world.choose(
        temperatures=(1.0,), fit_logits=False, samples=(4,), fractions=(0.1, 0.3, 0.5, 0.7), apply_pruning=applied
    )
    assert choice.free_fraction == 0.3
    assert choice.chosen.config.prune == (0.3 if applied else 0.0)
    assert choice.kept is not applied
    assert [c.config.prune for c in choice.candidates if c.stage == "pruning"] == [0.0, 0.1, 0.3, 0.5]


def test_pruning_is_judged_at_the_chosen_settings() -> None:
    world = Pruned(sharpness=3.0, noise=0.05)
    choice = world.choose(temperatures=(1.0,), samples=(4, 8), fractions=(0.5,), apply_pruning=True)
    row = of(choice, prune=0.5)
    expected = losses(
        world(drawn(row.config.samples, prune=0.5)),
        world.labels,
        choice.chosen.config.logit_temperature,
    )
    assert row.nll == float(expected.mean())
    assert choice.chosen.fitted
