"""prune, temper, merge, kl and snr against the oracle and their definitions."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from varlora.ops import PointMassError, isotropic_prior, kl, merge, prune, snr, temper
from varlora.posterior import DiagonalGaussian, Mixture, PointMass, Posterior, PosteriorMeta

ORACLE = json.loads((Path(__file__).parent / "data" / "gaussians.json").read_text())


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(mean: dict[str, Any], variance: dict[str, Any], **meta: Any) -> DiagonalGaussian:
    return DiagonalGaussian(
        mean={key: f64(m) for key, m in mean.items()},
        precision={key: 1 / f64(v) for key, v in variance.items()},
        meta=PosteriorMeta(**meta),
    )


def one(mean: Sequence[float], variance: Sequence[float], **meta: Any) -> DiagonalGaussian:
    return gaussian({"w": mean}, {"w": variance}, **meta)


def close(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, f64(expected), rtol=1e-9, atol=0)


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


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"base_model": "a"}, {"base_model": "b"}, "one base_model can be merged, not of 'a' and 'b'"),
        ({"adapter_config": {"r": 4, "lora_alpha": 8}}, {"adapter_config": {"r": 4, "lora_alpha": 16}}, "rank, alpha"),
        ({"readout": {"ids": [1]}}, {"readout": {"ids": [2]}}, "one readout"),
        ({"logit_temperature": 2.0}, {}, "different logit temperatures"),
    ],
)
def test_merge_refuses_posteriors_that_do_not_belong_together(first: dict, second: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge([one([1.0], [1.0], **first), one([1.0], [1.0], **second)], prior=one([0.0], [2.0]))


def test_merge_leaves_out_what_trainings_left_as_temperatures_of_samples_if_they_differ(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, same = (one([1.0], [1.0], logit_temperature_by_mode={"samples": 0.9}) for _ in range(2))
    other = one([1.0], [1.0], logit_temperature_by_mode={"samples": 0.8})
    prior = one([0.0], [2.0])
    assert merge([first, same], prior=prior).meta.logit_temperature_of("samples") == 0.9
    assert not caplog.records
    assert merge([first, other], prior=prior).meta.logit_temperature_of("samples") == 1.0
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
    with pytest.raises(ValueError, match="prior precision of b is None"):
        isotropic_prior(q, {"a": 4.0})
    with pytest.raises(ValueError, match=r"prior precision of a is 0\.0"):
        isotropic_prior(q, 0.0)


# Signal to noise and pruning -------------------------------------------------------------------------------


def oracle_posterior(case: dict[str, Any]) -> DiagonalGaussian:
    keys = [f"layer{i}" for i in range(len(case["shapes"]))]
    return gaussian(dict(zip(keys, case["m"], strict=True)), dict(zip(keys, case["v"], strict=True)))


@pytest.mark.parametrize("case", ORACLE["snr"], ids=["first", "second"])
def test_snr_and_pruning_agree_with_the_oracle(case: dict[str, Any]) -> None:
    q = oracle_posterior(case)
    close(torch.cat([x.flatten() for x in snr(q).values()]), case["snr"])
    for expected in case["cases"]:
        pruned = prune(q, expected["fraction"], scope=expected["scope"])
        zero = torch.cat([torch.isinf(p).flatten() for p in pruned.precision.values()])
        assert zero.nonzero().flatten().tolist() == sorted(expected["pruned_positions"])
        assert torch.equal(zero, torch.cat([(m == 0).flatten() for m in pruned.mean.values()]))
        assert torch.equal(zero, torch.cat([(v == 0).flatten() for v in pruned.variance.values()]))
        untouched = ~zero
        for before, after in ((q.mean, pruned.mean), (q.precision, pruned.precision)):
            flat = [torch.cat([t.flatten() for t in tensors.values()]) for tensors in (before, after)]
            assert torch.equal(flat[0][untouched], flat[1][untouched])


def test_snr_at_its_edges() -> None:
    edge = ORACLE["snr_edge"]
    expected = [math.inf if x is None else x for x in edge["snr"]]
    keys = [str(i) for i in range(len(expected))]
    q = gaussian(
        {k: [m] for k, m in zip(keys, edge["m"], strict=True)}, {k: [v] for k, v in zip(keys, edge["v"], strict=True)}
    )
    assert [snr(q)[key].item() for key in keys] == expected
    assert snr(PointMass(mean={"w": torch.tensor([0.0, -3.0])}))["w"].tolist() == [0.0, math.inf]


@pytest.mark.parametrize(
    ("by", "left"),
    [("snr", [0.0, 3.0, 0.0, 1.0]), ("variance", [0.0, 0.0, 0.2, 1.0]), ("magnitude", [0.0, 3.0, 0.0, 1.0])],
)
def test_pruning_criteria(by: Any, left: list[float]) -> None:
    # snr 0, 1.5, 1, 5; already pruned: the first.
    q = one([0.0, 3.0, 0.2, 1.0], [0.0, 4.0, 0.04, 0.04])
    assert prune(q, 0.5, by=by).mean["w"].tolist() == left


@pytest.mark.parametrize("by", ["snr", "variance", "magnitude", "random"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_pruning_twice_by_the_same_fraction_is_pruning_once(by: Any, scope: Any) -> None:
    q = oracle_posterior(ORACLE["snr"][0])
    once = prune(q, 0.25, by=by, scope=scope)
    twice = prune(once, 0.25, by=by, scope=scope)
    assert all(torch.equal(once.precision[key], twice.precision[key]) for key in q.mean)
    assert [step["op"] for step in twice.meta.history] == ["prune", "prune"]
    drawn = {"seed": 0} if by == "random" else {}
    assert twice.meta.history[0] == {"op": "prune", "fraction": 0.25, "by": by, "scope": scope, **drawn, "entries": 37}


def zeros(q: Posterior) -> Tensor:
    return torch.cat([(m == 0).flatten() for m in q.mean.values()])


def test_pruning_at_random_is_decided_by_its_seed_alone() -> None:
    q = one([float(i) for i in range(1, 1001)], [1.0 + i for i in range(1000)])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = prune(q, 0.3, by="random", seed=1)
    torch.manual_seed(99)
    assert torch.equal(zeros(first), zeros(prune(q, 0.3, by="random", seed=1)))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)
    other = zeros(prune(q, 0.3, by="random", seed=2))
    assert (int(zeros(first).sum()), int(other.sum())) == (300, 300)
    # Two independent sets of 300 of 1000 share 90 on average, with a standard deviation of 8.
    assert 50 < int((zeros(first) & other).sum()) < 130
    # Neither the size of an entry nor its place matters: of each half about 150, with a standard deviation of 7.
    assert 115 < int(zeros(first)[:500].sum()) < 185


def test_more_pruned_at_random_holds_what_less_does() -> None:
    q = one([1.0] * 50, [1.0] * 50)
    few, many = (zeros(prune(q, fraction, by="random", seed=3)) for fraction in (0.2, 0.6))
    assert bool(many[few].all())


def test_points_can_be_pruned_at_random_and_what_did_not_train_stays() -> None:
    point = prune(PointMass(mean={"w": torch.ones(10)}), 0.5, by="random")
    assert int((point.mean["w"] == 0).sum()) == 5
    q = gaussian({"fixed": [0.01] * 4, "w": [1.0] * 4}, {"fixed": [0.0] * 4, "w": [1.0] * 4})
    pruned = prune(q, 0.5, by="random")
    assert pruned.mean["fixed"].tolist() == [0.01] * 4
    assert sorted(pruned.variance["w"].tolist()) == [0.0, 0.0, 1.0, 1.0]
    members = Mixture(components=[PointMass(mean={"w": torch.ones(10)}), PointMass(mean={"w": torch.ones(10) * 2})])
    assert all(int((c.point["w"] == 0).sum()) == 5 for c in prune(members, 0.5, by="random", seed=4).components)


def test_the_pruned_count_is_exact_in_spite_of_rounding() -> None:
    q = one([float(i) for i in range(1, 11)], [1.0] * 10)
    counts = [prune(q, fraction).meta.history[-1]["entries"] for fraction in (0.0, 0.05, 0.1, 0.3, 0.7, 0.99, 1.0)]
    assert counts == [0, 0, 1, 3, 7, 9, 10]  # 0.7 * 10 is 7.000000000000001, 0.3 * 10 is 2.9999999999999996 elsewhere


def test_equal_scores_are_pruned_in_order() -> None:
    assert prune(one([1.0] * 4, [1.0] * 4), 0.5).mean["w"].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_tensors_that_did_not_train_are_neither_counted_nor_pruned() -> None:
    q = gaussian({"fixed": [0.01, 0.02], "w": [1.0, 2.0]}, {"fixed": [0.0, 0.0], "w": [1.0, 1.0]})
    pruned = prune(q, 0.5, by="magnitude")
    assert pruned.mean["fixed"].tolist() == [0.01, 0.02]
    assert pruned.mean["w"].tolist() == [0.0, 2.0]


def test_a_point_mass_cannot_be_pruned_by_its_variance() -> None:
    q = PointMass(mean={"w": torch.tensor([0.1, -2.0])})
    pruned = prune(q, 0.5, by="magnitude")
    assert isinstance(pruned, PointMass)
    assert pruned.mean["w"].tolist() == [0.0, -2.0]
    with pytest.raises(PointMassError, match="use by='magnitude'"):
        prune(q, 0.5)


def test_pruning_changes_no_input_and_warns_when_it_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    q = one([1.0, 2.0], [1.0, 1.0])
    prune(q, 1.0)
    assert q.mean["w"].tolist() == [1.0, 2.0]
    assert not q.meta.history
    with caplog.at_level(logging.WARNING):
        prune(q, 0.25)
    assert "prunes no entry" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.5}, "fraction is 1.5; it must lie between 0 and 1"),
        ({"fraction": math.nan}, "fraction is nan"),
        ({"fraction": 0.1, "by": "size"}, "by is 'size'"),
        ({"fraction": 0.1, "scope": "layer"}, "scope is 'layer'"),
    ],
)
def test_pruning_refuses_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(one([1.0], [1.0]), **options)


# Temperature -----------------------------------------------------------------------------------------------


def test_temper_scales_the_variance() -> None:
    q = prune(one([0.1, 2.0], [1.0, 0.5]), 0.5)
    hot = temper(q, 4.0)
    assert isinstance(hot, DiagonalGaussian)
    assert hot.variance["w"].tolist() == [0.0, 2.0]
    assert torch.equal(hot.mean["w"], q.mean["w"])
    assert hot.meta.history[-1] == {"op": "temper", "temperature": 4.0}
    back = temper(hot, 0.25)
    assert isinstance(back, DiagonalGaussian)
    assert torch.equal(back.precision["w"], q.precision["w"])


def test_a_tempered_draw_is_the_same_noise_scaled() -> None:
    q = one([1.0, 2.0], [1.0, 0.5])
    cold, warm = (x.sample(torch.Generator().manual_seed(0))["w"] for x in (q, temper(q, 4.0)))
    torch.testing.assert_close(warm - q.mean["w"], 2 * (cold - q.mean["w"]))


def test_temperature_zero_is_the_mean() -> None:
    q = temper(one([1.0], [1.0]), 0.0)
    assert isinstance(q, PointMass)
    assert q.mean["w"].tolist() == [1.0]


def test_temper_refuses_what_has_no_meaning() -> None:
    q = DiagonalGaussian(mean={"w": torch.ones(1)}, precision={"w": torch.full((1,), 1e30)})
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="at least 0"):
            temper(q, bad)
    with pytest.raises(ValueError, match=r"out of the range of torch\.float32"):
        temper(q, 1e-20)
    with pytest.raises(PointMassError, match="no variance to temper"):
        temper(PointMass(mean=q.mean), 2.0)  # type: ignore[arg-type]
