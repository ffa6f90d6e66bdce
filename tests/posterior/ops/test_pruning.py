"""prune and snr against the oracle and their definitions."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gaussians import close, gaussian, one
from varlora.posterior import DiagonalGaussian, Mixture, PointMass, Posterior
from varlora.posterior.ops import PointMassError, prune, snr

ORACLE = json.loads((Path(__file__).parents[2] / "data" / "gaussians.json").read_text())


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


def test_variances_that_are_all_the_same_rank_nothing() -> None:
    q = DiagonalGaussian(
        mean={"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([3.0, 0.5])},
        precision={"a": torch.full((2,), 4.0), "b": torch.full((2,), 4.0)},
    )
    with pytest.raises(ValueError, match="all entries have the same variance"):
        prune(q, 0.5, by="variance")
    assert prune(q, 0.5).mean["a"].tolist() == [1.0, 0.0]  # by their size
    assert prune(q, 0.5).mean["b"].tolist() == [3.0, 0.0]
