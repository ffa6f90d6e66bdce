"""Noise beside weights, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from varlora.posterior import (
    DiagonalGaussian,
    DropoutMasks,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    PointMass,
    Posterior,
    PosteriorMeta,
)
from varlora.posterior.kronecker import KroneckerFactors
from varlora.report.scales import ScaleGroup, TensorScale, scales_of


def gaussian(entries: dict[str, tuple[list[float], list[float]]], **meta: object) -> DiagonalGaussian:
    """Means and standard deviations by key."""
    return DiagonalGaussian(
        mean={key: torch.tensor(m) for key, (m, _) in entries.items()},
        precision={key: torch.tensor(sd).square().reciprocal() for key, (_, sd) in entries.items()},
        meta=PosteriorMeta(**meta),  # type: ignore[arg-type]
    )


def test_root_mean_squares_by_tensor_and_of_all_entries_together() -> None:
    q = gaussian({"a.lora_A.weight": ([3.0, 4.0], [1.0, 7.0]), "b.lora_A.weight": ([2.0], [1.0])})
    (group,), exact = scales_of(q)
    small, large = group.tensors
    assert (group.name, exact) == ("LoRA A", 0)
    assert (small.key, small.ratio, small.entries) == ("b.lora_A.weight", pytest.approx(0.5), 1)
    assert large.noise == pytest.approx(5.0)  # √((1 + 49) / 2)
    assert large.weights == pytest.approx(math.sqrt(12.5))
    assert large.ratio == pytest.approx(math.sqrt(2.0))
    assert group.ratio == pytest.approx(math.sqrt(51 / 29))
    assert (group.median, group.largest) == (small, large)


def test_the_tensor_in_the_middle_of_three() -> None:
    tensors = tuple(
        TensorScale(key=key, noise=noise, weights=1.0, entries=1) for key, noise in zip("abc", (1, 2, 9), strict=True)
    )
    assert ScaleGroup(name="LoRA B", tensors=tensors).median.key == "b"


def test_roles_are_told_from_keys_and_the_adapters_config() -> None:
    keys = (
        "base_model.model.q_proj.lora_B.weight",
        "base_model.model.score.weight",
        "base_model.model.q_proj.lora_A.weight",
        "base_model.model.embed.lora_embedding_A",
        "base_model.model.q_proj.lora_magnitude_vector",
        "base_model.model.q_proj.bias",
    )
    q = gaussian({key: ([1.0], [1.0]) for key in keys}, adapter_config={"modules_to_save": ["score"]})
    groups, _ = scales_of(q)
    assert [(group.name, len(group.tensors)) for group in groups] == [
        ("LoRA A", 2),
        ("LoRA B", 1),
        ("DoRA magnitudes", 1),
        ("head", 1),
        ("other", 1),
    ]
    assert scales_of(gaussian({"weight": ([1.0], [1.0])}))[0][0].name == "weights"


def test_what_is_known_exactly_is_counted_and_noise_on_zeros_is_infinite() -> None:
    q = gaussian({"a.lora_A": ([1.0], [0.0]), "b.lora_A": ([0.0], [0.5]), "c.lora_A": ([1.0, 0.0], [0.5, 0.0])})
    (group,), exact = scales_of(q)
    assert exact == 1
    assert [t.key for t in group.tensors] == ["c.lora_A", "b.lora_A"]
    assert group.largest.ratio == math.inf


def test_a_mixtures_noise_lies_within_its_components() -> None:
    components = [gaussian({"w": ([m], [sd])}) for m, sd in ((1.0, 1.0), (-7.0, 7.0))]
    (group,), _ = scales_of(Mixture(components=tuple(components)))
    assert group.largest.noise == pytest.approx(5.0)
    assert group.largest.weights == pytest.approx(5.0)


def test_other_kinds() -> None:
    mean = {"w": torch.full((2, 2), 2.0)}
    eye = torch.eye(2)
    factors = KroneckerFactors(out_vectors=eye, out_values=torch.zeros(2), in_vectors=eye, in_values=torch.zeros(2))
    kronecker = KroneckerGaussian(mean=mean, factors={"w": factors}, prior_precision={"w": 0.25})  # v = 4
    assert scales_of(kronecker)[0][0].ratio == pytest.approx(1.0)
    low_rank = LowRankGaussian(
        mean={"w": torch.ones(2)},
        diagonal={"w": torch.tensor([1.0, 1.0])},
        deviations={"w": torch.tensor([[3.0, 3.0]])},
        shared=False,
    )
    assert scales_of(low_rank)[0][0].ratio == pytest.approx(math.sqrt(10.0))
    ones: dict[str, Tensor] = {"w": torch.ones(2)}
    without: list[Posterior] = [
        PointMass(mean=ones),
        DropoutMasks(mean=ones, rate=0.1),
        Mixture(components=(PointMass(mean=ones), PointMass(mean=ones))),
    ]
    assert [scales_of(q) for q in without] == [((), 0)] * 3
