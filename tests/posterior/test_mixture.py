"""A mixture's moments, draws and files, against its components taken one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from varlora.posterior import (
    DiagonalGaussian,
    DropoutMasks,
    LowRankGaussian,
    Mixture,
    PointMass,
    PointMassError,
    Posterior,
    PosteriorMeta,
)
from varlora.posterior.folder import load_posterior, save_posterior

SHAPES = {"a.lora_A.weight": (2, 3), "b": (2,)}


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def point(seed: int) -> PointMass:
    return PointMass(mean=tensors(seed))


def gaussian(seed: int) -> DiagonalGaussian:
    return DiagonalGaussian(mean=tensors(seed), precision={key: t.exp() for key, t in tensors(seed + 100).items()})


def low_rank(seed: int) -> LowRankGaussian:
    deviations = {key: torch.stack([t, 2 * t, -t]) for key, t in tensors(seed + 200).items()}
    diagonal = {key: t.exp() for key, t in tensors(seed + 300).items()}
    return LowRankGaussian(mean=tensors(seed), diagonal=diagonal, deviations=deviations, shared=True)


def equal(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_moments_are_those_of_the_draws() -> None:
    q = Mixture(components=(gaussian(0), low_rank(1), point(2)))
    generator = torch.Generator().manual_seed(0)
    draws = [q.sample(generator) for _ in range(5_000)]
    for key in SHAPES:
        stacked = torch.stack([draw[key] for draw in draws])
        torch.testing.assert_close(stacked.mean(0), q.mean[key], atol=0.08, rtol=0.05)
        torch.testing.assert_close(stacked.var(0), q.variance[key], atol=0.1, rtol=0.08)


def test_the_variance_is_that_within_and_that_between() -> None:
    q = Mixture(components=(gaussian(0), gaussian(1)))
    for key in SHAPES:
        first, second = (c.mean[key].double() for c in q.components)
        within = sum(c.variance[key].double() for c in q.components) / 2
        torch.testing.assert_close(q.variance[key], (within + (first - second) ** 2 / 4).float())
        torch.testing.assert_close(q.mean[key], ((first + second) / 2).float())


def test_a_draw_is_of_one_component_in_all_its_tensors_and_each_comes_equally_often() -> None:
    q = Mixture(components=[point(seed) for seed in range(4)])
    generator, chosen = torch.Generator().manual_seed(0), [0] * 4
    for _ in range(2000):
        draw = q.sample(generator)
        (i,) = [i for i, component in enumerate(q.components) if equal(draw, component.mean)]
        chosen[i] += 1
    assert all(abs(count - 500) < 80 for count in chosen)  # 4 standard deviations


def test_the_point_is_the_first_components_and_no_average() -> None:
    q = Mixture(components=(point(0), gaussian(1)))
    assert equal(q.point, point(0).mean)
    assert not any(torch.allclose(q.point[key], q.mean[key]) for key in SHAPES)
    assert not q.symmetric


def test_pruned_entries_are_zero_in_every_component() -> None:
    meta = PosteriorMeta(method="pruned")
    masks = {"b": torch.tensor([True, False])}
    q = Mixture(components=(gaussian(0), point(1))).zeroed(masks, meta)
    assert q.meta.method == "pruned"
    assert [component.mean["b"][0].item() for component in q.components] == [0.0, 0.0]
    assert q.variance["b"][0] == 0
    assert q.variance["b"][1] > 0
    assert torch.equal(q.components[1].mean["b"][1], point(1).mean["b"][1])


def test_tempering_scales_within_the_components_only() -> None:
    q = Mixture(components=(gaussian(0), low_rank(1)))
    warm = q.scaled(4.0, q.meta)
    for before, after in zip(q.components, warm.components, strict=True):
        assert equal(before.mean, after.mean)
        for key in SHAPES:
            torch.testing.assert_close(after.variance[key], 4 * before.variance[key])


def test_a_component_without_a_variance_cannot_be_tempered() -> None:
    with pytest.raises(PointMassError, match="component 1 of the mixture: a point mass has no variance"):
        Mixture(components=(gaussian(0), point(1))).scaled(2.0, PosteriorMeta())


@pytest.mark.parametrize(
    "components",
    [
        (point(0), point(1), point(2)),
        (gaussian(0), point(1), low_rank(2)),
        (point(0), gaussian(1)),
        tuple(point(seed) for seed in range(12)),
    ],
    ids=["points", "several kinds", "a point first", "more than ten"],
)
def test_a_saved_mixture_is_the_same_in_every_bit(components: tuple[Posterior, ...], tmp_path: Path) -> None:
    q = Mixture(components=components, meta=PosteriorMeta(method="ensemble"))
    loaded = load_posterior(save_posterior(q, tmp_path / "q"))
    assert isinstance(loaded, Mixture)
    assert loaded.meta == q.meta
    assert [type(component) for component in loaded.components] == [type(component) for component in q.components]
    for before, after in zip(q.components, loaded.components, strict=True):
        assert equal(before.point, after.point)
        assert equal(before.tensors(), after.tensors())
        assert after.meta == q.meta
        generators = (torch.Generator().manual_seed(3) for _ in range(2))
        assert equal(*(c.sample(g) for c, g in zip((before, after), generators, strict=True)))


def test_the_first_components_point_is_not_kept_twice() -> None:
    names = Mixture(components=(gaussian(0), point(1))).tensors().keys()
    assert names == {
        *(f"component.0.diagonal_gaussian/tensors/{key}" for key in SHAPES),
        *(f"component.1.point_mass/point/{key}" for key in SHAPES),
    }


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ((), "at least two components, not 0"),
        ((point(0),), "at least two components, not 1"),
        ((point(0), PointMass(mean={"b": torch.zeros(2)})), r"0 and 1 .*only one of them has \['a.lora_A.weight'\]"),
        ((point(0), PointMass(mean={**tensors(0), "b": torch.zeros(3)})), r"component 1 has b of shape \(3,\).*\(2,\)"),
        ((point(0), Mixture(components=(point(0), point(1)))), "component 1 is a mixture; .* one by one"),
        ((point(0), DropoutMasks(mean=tensors(0), rate=0.1)), "component 1 is a dropout_masks"),
    ],
)
def test_components_that_do_not_fit_are_named(components: tuple[Posterior, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(components=components)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strange": torch.zeros(1)}, "'strange' is no tensor of a mixture"),
        ({"component.0.point_mass/point/b": torch.zeros(2)}, "is no tensor of a mixture"),
        ({"component.1.diagonal_gaussian/point/b": torch.zeros(2)}, "component 1 is of no known kind, or of two"),
        ({"component.1.laplacian/point/b": torch.zeros(2)}, "component 1 is of no known kind"),
        ({"component.3.point_mass/point/b": torch.zeros(2)}, r"no point for component\(s\) \[2\] of 4"),
        ({"component.1.point_mass/tensors/b": torch.zeros(2)}, "component 1 of the mixture: .*no tensors but its mean"),
        ({"component.1.point_mass/point/b": torch.tensor([0.0, torch.nan])}, "component 1 of the mixture: mean of b"),
    ],
)
def test_tensors_that_make_no_mixture_are_named(change: dict[str, Tensor], message: str) -> None:
    kept = {f"component.1.point_mass/point/{key}": t for key, t in tensors(1).items()}
    assert Mixture.from_tensors(tensors(0), kept, PosteriorMeta())
    with pytest.raises(ValueError, match=message):
        Mixture.from_tensors(tensors(0), {**kept, **change}, PosteriorMeta())
