"""isotropic_prior, kl and merge against the oracle and their definitions."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gaussians import close, f64, gaussian, one
from varlora.posterior import DiagonalGaussian, PointMass, PosteriorMeta
from varlora.posterior.ops import PointMassError, common_prior, isotropic_prior, kl, merge, prune, temper

ORACLE = json.loads((Path(__file__).parents[2] / "data" / "gaussians.json").read_text())


# KL --------------------------------------------------------------------------------------------------------


def test_kl_agrees_with_the_oracle() -> None:
    case = ORACLE["kl_pairs"]
    q, p = one(case["m1"], case["v1"]), one(case["m2"], case["v2"])
    close(kl(q, p), case["total"])
    each = [
        kl(one([m1], [v1]), one([m2], [v2]))
        for m1, v1, m2, v2 in zip(case["m1"], case["v1"], case["m2"], case["v2"], strict=True)
    ]
    close(torch.stack(each), case["kl"])


def test_kl_of_neighbours_does_not_cancel() -> None:
    # For v_q = v_p (1 + x), KL = (x − log(1 + x)) / 2 = x²/4 − x³/6 + ...
    x = 2.0**-30
    q = one([1.0], [1.0])
    p = DiagonalGaussian(mean=q.mean, precision={"w": q.precision["w"] * (1 + x)})
    close(kl(q, p), x**2 / 4 - x**3 / 6)
    assert kl(q, q) == 0


def test_kl_sums_over_tensors_in_float64() -> None:
    q = DiagonalGaussian(
        mean={"a": torch.ones(2), "b": torch.ones(3)}, precision={"a": torch.ones(2), "b": torch.ones(3)}
    )
    divergence = kl(q, isotropic_prior(q, 1.0))
    assert divergence.dtype == torch.float64
    close(divergence, 2.5)


def test_kl_of_a_point_mass_is_a_named_error() -> None:
    q = one([1.0, 2.0], [1.0, 1.0])
    point = PointMass(mean=q.mean)
    with pytest.raises(PointMassError, match="q is a point mass"):
        kl(point, q)  # type: ignore[arg-type]
    with pytest.raises(PointMassError, match="p is a point mass"):
        kl(q, point)  # type: ignore[arg-type]
    with pytest.raises(PointMassError, match="1 of 2 entries of w"):
        kl(prune(q, 0.5), q)


def test_tensors_that_did_not_train_add_nothing_to_kl() -> None:
    q = gaussian({"fixed": [1.0, 2.0], "w": [1.0]}, {"fixed": [0.0, 0.0], "w": [1.0]})
    close(kl(q, isotropic_prior(q, 1.0)), 0.5)


def test_kl_needs_the_same_tensors() -> None:
    q = one([1.0], [1.0])
    with pytest.raises(ValueError, match="different tensors; only one of them has u"):
        kl(q, gaussian({"w": [1.0], "u": [1.0]}, {"w": [1.0], "u": [1.0]}))
    with pytest.raises(ValueError, match=r"w is \(1,\) in one posterior and \(2,\) in another"):
        kl(q, one([1.0, 1.0], [1.0, 1.0]))


# Merge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ORACLE["merge"], ids=lambda case: f"K={case['K']}")
def test_merge_agrees_with_the_oracle(case: dict[str, Any]) -> None:
    prior = one(case["prior_mean"], case["prior_variance"])
    posteriors = [one(m, v) for m, v in zip(case["means"], case["variances"], strict=True)]
    valid = torch.tensor(case["expected"]["valid"])
    expected = {
        name: f64([math.nan if x is None else x for x in case["expected"][name]]) for name in ("mean", "variance")
    }

    with pytest.raises(ValueError, match=f"{int((~valid).sum())} of 12 entries of w have no product"):
        merge(posteriors, prior=prior)

    merged = merge(posteriors, prior=prior, invalid="prior")
    close(merged.mean["w"][valid], expected["mean"][valid].tolist())
    close(merged.variance["w"][valid], expected["variance"][valid].tolist())
    assert torch.equal(merged.mean["w"][~valid], prior.mean["w"][~valid])
    assert torch.equal(merged.precision["w"][~valid], prior.precision["w"][~valid])
    assert merged.meta.history[-1]["invalid_entries_from_prior"] == int((~valid).sum())


def test_merging_one_posterior_gives_it_back() -> None:
    q = one([1.0, -2.0], [0.5, 0.25])
    merged = merge([q], prior=isotropic_prior(q, 1.0))
    close(merged.mean["w"], [1.0, -2.0])
    close(merged.variance["w"], [0.5, 0.25])


def test_conjugate_posteriors_of_two_halves_merge_into_that_of_the_whole() -> None:
    # Prior N(0, 1/2), unit-noise observations: precision 2 + n, mean sum / (2 + n).
    data = f64([1.0, 3.0, -2.0, 0.5, 4.0])

    def fit(x: Tensor) -> DiagonalGaussian:
        return one([(x.sum() / (2 + len(x))).item()], [1 / (2 + len(x))], num_examples=len(x), ess=float(len(x)))

    whole, merged = fit(data), merge([fit(data[:2]), fit(data[2:])], prior=one([0.0], [0.5]))
    close(merged.mean["w"], whole.mean["w"].tolist())
    close(merged.variance["w"], whole.variance["w"].tolist())
    assert (merged.meta.num_examples, merged.meta.ess) == (5, 5.0)


M0, PRIOR = [0.7, -0.3], 4.0
HALVES = [f64([[1.0, 2.0], [0.5, -1.0], [2.0, 0.1]]), f64([[-1.0, 0.4], [0.3, 1.5]])]


def around_a_start(x: Tensor, prior: float = PRIOR) -> DiagonalGaussian:
    """Of unit-noise observations, with the prior N(M0, 1/prior): what a movement prior of known width comes to."""
    precision = prior + len(x)
    return DiagonalGaussian(
        mean={"w": (prior * f64(M0) + x.sum(0)) / precision},
        precision={"w": torch.full((2,), precision, dtype=torch.float64)},
        prior_mean={"w": f64(M0)},
        meta=PosteriorMeta(prior_precision={"w": prior}, num_examples=len(x)),
    )


def test_posteriors_of_two_halves_with_a_prior_around_their_start_merge_into_that_of_the_whole() -> None:
    parts, whole = [around_a_start(x) for x in HALVES], around_a_start(torch.cat(HALVES))
    merged = merge(parts, prior=common_prior(parts))
    close(merged.mean["w"], whole.mean["w"].tolist())
    close(merged.variance["w"], whole.variance["w"].tolist())
    assert merged.meta.prior_precision == {"w": PRIOR}
    three = torch.cat([*HALVES, HALVES[0]])
    again = [merged, parts[0]]
    close(merge(again, prior=common_prior(again)).mean["w"], around_a_start(three).mean["w"].tolist())


def test_a_prior_that_is_not_around_the_start_is_refused() -> None:
    parts = [around_a_start(x) for x in HALVES]
    with pytest.raises(ValueError, match=r"the prior of w is not around where the posteriors' training began"):
        merge(parts, prior=one([0.0, 0.0], [1 / PRIOR] * 2))
    elsewhere = dataclasses.replace(parts[1], prior_mean={"w": f64([0.7, 0.3])})
    for prior in (lambda q: common_prior(q), lambda q: isotropic_prior(q[0], 1.0)):
        with pytest.raises(ValueError, match=r"posterior 2 and posterior 1 began their trainings in different places"):
            merge([parts[0], elsewhere], prior=prior([parts[0], elsewhere]))
    former = one([0.0], [1.0], diagnostics={"prior_width": 4.0})
    with pytest.raises(ValueError, match=r"around where its training began, which a former version"):
        isotropic_prior(former, 1.0)


def test_widths_that_each_run_has_learned_are_averaged() -> None:
    parts = [around_a_start(x, prior) for x, prior in zip(HALVES, (2.0, 6.0), strict=True)]
    prior = common_prior(parts)
    close(prior.precision["w"], [4.0, 4.0])
    merged = merge(parts, prior=prior)
    close(merged.variance["w"], [1 / (3 + 2 + 4.0)] * 2)  # both parts' data, and the prior once


def test_tempering_and_pruning_keep_the_prior_so_that_merging_commutes_with_tempering() -> None:
    parts = [around_a_start(x) for x in HALVES]
    tempered = [temper(q, 0.5) for q in parts]
    assert tempered[0].meta.prior_precision == {"w": 2 * PRIOR}
    first, second = merge(tempered, prior=common_prior(tempered)), temper(merge(parts, prior=common_prior(parts)), 0.5)
    close(first.mean["w"], second.mean["w"].tolist())
    close(first.variance["w"], second.variance["w"].tolist())
    assert torch.equal(prune(parts[0], 0.5).prior_mean["w"], f64(M0))


def test_merge_keeps_what_one_posterior_knows_exactly() -> None:
    pruned, other = prune(one([0.1, 2.0], [1.0, 1.0]), 0.5), one([5.0, 4.0], [1.0, 1.0])
    merged = merge([pruned, other], prior=one([0.0, 0.0], [10.0, 10.0]))
    assert (merged.mean["w"][0], merged.variance["w"][0]) == (0, 0)
    close(merged.mean["w"][1], 6 / 1.9)

    def fixed(values: list[float]) -> DiagonalGaussian:
        return one(values, [0.0, 0.0])

    assert torch.equal(merge([fixed([1, 2]), other], prior=other).mean["w"], f64([1.0, 2.0]))
    with pytest.raises(ValueError, match="1 of 2 entries of w have no product"):
        merge([fixed([1, 2]), fixed([1, 3])], prior=other)


BASE = {"config": {}, "sha256": "1", "embeddings": None, "float16": False}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"base_model": "a"}, {"base_model": "b"}, "one base_model can be merged, not of 'a' and 'b'"),
        ({"adapter_config": {"r": 4, "lora_alpha": 8}}, {"adapter_config": {"r": 4, "lora_alpha": 16}}, "rank, alpha"),
        ({"readout": {"ids": [1]}}, {"readout": {"ids": [2]}}, "one readout"),
        ({"base_fingerprint": BASE}, {"base_fingerprint": {**BASE, "sha256": "2"}}, "of one base model .* the weights"),
    ],
)
def test_merge_refuses_posteriors_that_do_not_belong_together(first: dict, second: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge([one([1.0], [1.0], **first), one([1.0], [1.0], **second)], prior=one([0.0], [2.0]))


@pytest.mark.parametrize("mode", ["samples", "mean"])
def test_merge_leaves_out_temperatures_that_differ(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    first, same = (one([1.0], [1.0], logit_temperatures={mode: 0.9}) for _ in range(2))
    other = one([1.0], [1.0], logit_temperatures={mode: 0.8})
    prior = one([0.0], [2.0])
    assert merge([first, same], prior=prior).meta.logit_temperature_of(mode) == 0.9
    kept = [one([1.0], [1.0], logit_temperatures=temperatures) for temperatures in ({}, {mode: 1.0})]
    assert merge(kept, prior=prior).meta.logit_temperature_of(mode) == 1
    assert not caplog.records
    assert merge([first, other], prior=prior).meta.logit_temperatures == {}
    assert "the merged one has none" in caplog.text


def test_merge_refuses_point_masses_and_empty_lists() -> None:
    q = one([1.0], [1.0])
    with pytest.raises(PointMassError, match="average their means"):
        merge([q, PointMass(mean=q.mean)], prior=q)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one"):
        merge([], prior=q)


def test_isotropic_prior_takes_one_precision_or_one_by_tensor() -> None:
    q = gaussian({"a": [1.0], "b": [2.0, 3.0]}, {"a": [1.0], "b": [1.0, 1.0]})
    prior = isotropic_prior(q, {"a": 4.0, "b": 2.0})
    assert torch.equal(prior.precision["b"], f64([2.0, 2.0]))
    assert torch.equal(prior.mean["b"], f64([0.0, 0.0]))
    with pytest.raises(ValueError, match="b has no prior precision"):
        isotropic_prior(q, {"a": 4.0})
    with pytest.raises(ValueError, match="a has no prior precision"):
        isotropic_prior(q, None)  # what meta.prior_precision of a default run is
    with pytest.raises(ValueError, match=r"prior precision of a is 0\.0"):
        isotropic_prior(q, 0.0)
