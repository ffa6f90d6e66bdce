"""What can be tuned depends on the kind of posterior; the run's own settings are always there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from varlora.posterior import DiagonalGaussian, DropoutMasks, Mixture, PointMass, Posterior, PosteriorMeta
from varlora.runs.space import Grid, Space, space_of

ONE = {"w": torch.ones(1)}


def gaussian(**meta: Any) -> DiagonalGaussian:
    return DiagonalGaussian(mean=ONE, precision=ONE, meta=PosteriorMeta(**meta))


def found(q: Posterior, own: int = 10, **options: Any) -> tuple[Space, list[str]]:
    given: dict[str, Any] = {"temperatures": [4, 0, 0.5], "samples": [32, 2], "fractions": [0.3, 0, 0.1], "by": None}
    return space_of(q, own, Grid(**{**given, **options}))


def test_a_gaussian_has_all() -> None:
    space, notes = found(gaussian(logit_temperatures={"mean": 2.0, "samples": 1.5}))
    assert (space.temperatures, space.samples, space.fractions) == ((0.0, 0.5, 1.0, 4.0), (2, 10, 32), (0.1, 0.3))
    assert (space.by, space.mode, space.start, space.draws) == ("snr", "samples", 1.0, 10)
    assert space.logit_temperatures == {"mean": 2.0, "samples": 1.5}
    assert not notes


@pytest.mark.parametrize(
    ("q", "temperatures", "samples", "by", "mode", "note"),
    [
        (PointMass(mean=ONE), (1.0,), (10,), "magnitude", "mean", "A point mass has no variance"),
        (Mixture(components=[PointMass(mean=ONE)] * 2), (1.0,), (10,), "magnitude", "samples", "each is one draw"),
        (DropoutMasks(mean=ONE, rate=0.1), (0.0, 1.0), (2, 10, 32), "magnitude", "samples", "only 0 (dropout off)"),
        (Mixture(components=[gaussian()] * 2), (0.0, 0.5, 1.0, 4.0), (10,), "snr", "samples", "A mixture draws from"),
        (gaussian(linearised=True), (0.0, 0.5, 1.0, 4.0), (10,), "snr", "linearised", "Draws of the logits"),
    ],
)
def test_other_kinds_have_less(q: Posterior, temperatures: Any, samples: Any, by: str, mode: str, note: str) -> None:
    space, notes = found(q)
    assert (space.temperatures, space.samples) == (temperatures, samples)
    assert (space.by, space.mode) == (by, mode)
    assert len(notes) == 1
    assert note in notes[0]


def test_a_run_without_draws_starts_at_its_mean() -> None:
    space, _ = found(gaussian(), own=0, temperatures=[1.0])
    assert (space.temperatures, space.start, space.draws, space.samples) == ((0.0, 1.0), 0.0, 10, (2, 10, 32))
    assert found(PointMass(mean=ONE), own=0)[0].start == 1.0


def test_by_is_the_users() -> None:
    assert found(gaussian(), by="variance")[0].by == "variance"
    with pytest.raises(ValueError, match="by is 'snr', but a posterior of kind 'point_mass' has no variance"):
        found(PointMass(mean=ONE), by="snr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": [-1.0]}, "temperatures has -1.0; allowed: finite numbers"),
        ({"temperatures": [float("inf")]}, "temperatures has inf"),
        ({"temperatures": [float("nan")]}, "temperatures has nan"),
        ({"samples": [0]}, "samples has 0; allowed: whole numbers from 1"),
        ({"samples": [2.5]}, "samples has 2.5"),
        ({"fractions": [1.0]}, "fractions has 1.0; allowed: numbers from 0 to below 1"),
        ({"fractions": [-0.1]}, "fractions has -0.1"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(gaussian(), **options)
