"""The low-rank Gaussian: its draws' covariance within and between tensors, and what pruning and tempering do to it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from varlora.posterior import NotLinearisableError, Posterior, PosteriorMeta, linearisable
from varlora.posterior.low_rank import LowRankGaussian

META = PosteriorMeta(method="test")


def gaussian(*, shared: bool, dtype: torch.dtype = torch.float32) -> LowRankGaussian:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return LowRankGaussian(
        mean={"b": normal(3), "a": normal(2, 2)},
        diagonal={"a": normal(2, 2).square(), "b": normal(3).square()},
        deviations={"b": normal(2, 3), "a": normal(2, 2, 2)},
        shared=shared,
        meta=META,
    )


def dense(q: LowRankGaussian) -> Tensor:
    """The covariance over all entries of "a", then "b", written out by hand."""
    rows = [q.deviations[key].flatten(1).double() for key in ("a", "b")]
    low_rank = torch.cat(rows, dim=1).T @ torch.cat(rows, dim=1)
    if not q.shared:
        low_rank = torch.block_diag(*[d.T @ d for d in rows])
    return low_rank + torch.diag(torch.cat([q.diagonal[key].flatten().double() for key in ("a", "b")]))


def flat(draw: dict[str, Tensor]) -> Tensor:
    return torch.cat([draw[key].flatten() for key in ("a", "b")])


def equal(first: LowRankGaussian, second: LowRankGaussian) -> bool:
    pairs = [(getattr(first, n), getattr(second, n)) for n in ("mean", "diagonal", "deviations")]
    same = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)
    return same and first.shared == second.shared and first.meta == second.meta


@pytest.mark.parametrize("shared", [True, False])
def test_it_is_a_posterior_with_the_marginal_variances_of_its_covariance(shared: bool) -> None:
    q = gaussian(shared=shared)
    assert isinstance(q, Posterior)
    assert list(q.mean) == list(q.variance) == list(q.deviations) == ["a", "b"]
    assert q.point is q.mean
    torch.testing.assert_close(flat(q.variance).double(), dense(q).diagonal())


@pytest.mark.parametrize("shared", [True, False])
def test_draws_have_the_dense_covariance_between_tensors_too(shared: bool) -> None:
    q, n = gaussian(shared=shared, dtype=torch.float64), 20_000
    generator = torch.Generator().manual_seed(0)
    draws = torch.vmap(lambda _: flat(q.sample(generator)), randomness="different")(torch.zeros(n))
    expected = dense(q)
    # The standard error of a sample covariance of Gaussians: sqrt((S_ii S_jj + S_ij²) / n).
    error = ((torch.outer(expected.diagonal(), expected.diagonal()) + expected.square()) / n).sqrt()
    assert ((draws.T.cov() - expected).abs() < 4.5 * error).all()
    assert ((draws.mean(0) - flat(q.mean)).abs() < 4.5 * (expected.diagonal() / n).sqrt()).all()
    between = expected[:4, 4:].abs()
    assert (between > 10 * error[:4, 4:]).any() if shared else not between.any()


def test_equal_seeds_give_equal_draws_and_pruning_leaves_the_other_entries_noise_alone() -> None:
    for shared in (True, False):
        q = gaussian(shared=shared)
        mask = torch.tensor([[True, False], [False, True]])
        pruned = q.zeroed({"a": mask}, PosteriorMeta(method="pruned"))
        assert pruned.meta.method == "pruned"
        before, after = (g.sample(torch.Generator().manual_seed(1)) for g in (q, pruned))
        assert before["a"].dtype == torch.float32
        assert not after["a"][mask].any()
        assert not pruned.variance["a"][mask].any()
        assert torch.equal(after["a"][~mask], before["a"][~mask])
        assert torch.equal(after["b"], before["b"])


def test_draws_are_float64_where_the_mean_is_and_float32_elsewhere() -> None:
    half = LowRankGaussian(
        mean={"w": torch.ones(2, dtype=torch.bfloat16)},
        diagonal={"w": torch.ones(2)},
        deviations={"w": torch.ones(1, 2)},
        shared=True,
    )
    assert half.sample(torch.Generator())["w"].dtype == torch.float32
    assert gaussian(shared=True, dtype=torch.float64).sample(torch.Generator())["a"].dtype == torch.float64


@pytest.mark.parametrize("shared", [True, False])
def test_tempering_multiplies_the_whole_covariance(shared: bool) -> None:
    q = gaussian(shared=shared)
    warm = q.scaled(2.5, PosteriorMeta(method="warm"))
    torch.testing.assert_close(dense(warm), 2.5 * dense(q))
    assert torch.equal(flat(warm.mean), flat(q.mean))
    assert warm.meta.method == "warm"
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be a positive, finite number"):
            q.scaled(temperature, META)
    for temperature in (1e-60, 1e60):
        with pytest.raises(ValueError, match=r"takes variances of a out of the range of torch.float32"):
            q.scaled(temperature, META)


def test_quadratic_forms_are_those_of_the_dense_covariance() -> None:
    q = gaussian(shared=False, dtype=torch.float64)
    assert linearisable(q) is q
    vectors = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = vectors.flatten(2) @ dense(q)[:4, :4] @ vectors.flatten(2).mT
    torch.testing.assert_close(q.quadratic_form("a", vectors), expected)
    with pytest.raises(ValueError, match=r"vectors for a must be \(B, C, 2, 2\): \(5, 3, 4\)"):
        q.quadratic_form("a", vectors.flatten(2))
    with pytest.raises(NotLinearisableError, match=r"correlated with each other .* Predict by samples"):
        gaussian(shared=True).quadratic_form("a", vectors)


@pytest.mark.parametrize("shared", [True, False])
def test_it_comes_back_from_its_tensors_through_a_file(shared: bool) -> None:
    q = gaussian(shared=shared)
    loaded = load(save(q.tensors()))
    assert equal(LowRankGaussian.from_tensors(q.mean, loaded, META), q)


def test_tensors_may_differ_in_rank_or_be_known_exactly_unless_z_is_shared() -> None:
    parts: dict[str, Any] = {
        "mean": {"exact": torch.ones(2), "random": torch.zeros(2)},
        "diagonal": {"exact": torch.zeros(2), "random": torch.zeros(2)},
        "deviations": {"exact": torch.zeros(0, 2), "random": torch.eye(2)},
    }
    q = LowRankGaussian(**parts, shared=False)
    assert torch.equal(q.sample(torch.Generator())["exact"], torch.ones(2))
    assert torch.equal(q.variance["exact"], torch.zeros(2))
    assert torch.equal(q.variance["random"], torch.ones(2))
    assert equal(LowRankGaussian.from_tensors(q.mean, load(save(q.tensors())), q.meta), q)
    with pytest.raises(ValueError, match=r"one z moves all tensors .* one K, not \{'exact': 0, 'random': 2\}"):
        LowRankGaussian(**parts, shared=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": {}}, "at least one tensor"),
        ({"mean": {"w": torch.tensor([math.nan, 0.0])}}, "mean of w has 1 NaN"),
        ({"diagonal": {"v": torch.ones(2)}}, r"mean and diagonal must have the same keys; .* \['v', 'w'\]"),
        ({"deviations": {}}, r"mean and deviations must have the same keys; .* \['w'\]"),
        ({"diagonal": {"w": torch.ones(2).bfloat16()}}, "diagonal of w has dtype torch.bfloat16"),
        ({"deviations": {"w": torch.ones(1, 2).int()}}, "deviations of w has dtype torch.int32"),
        ({"diagonal": {"w": torch.ones(3)}}, r"diagonal of w has shape \(3,\); its mean asks for \(2,\)"),
        ({"deviations": {"w": torch.ones(2)}}, r"deviations of w has shape \(2,\); its mean asks for \('K', 2\)"),
        ({"deviations": {"w": torch.ones(1, 3)}}, r"deviations of w has shape \(1, 3\)"),
        ({"diagonal": {"w": torch.tensor([-1.0, 0.0])}}, r"diagonal of w has 1 value\(s\) of 2 .* at least 0"),
        ({"diagonal": {"w": torch.tensor([math.inf, 0.0])}}, r"diagonal of w has 1 value\(s\) of 2"),
        ({"deviations": {"w": torch.tensor([[math.nan, 0.0]])}}, r"deviations of w has 1 value\(s\) of 2 .* finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {
        "mean": {"w": torch.zeros(2)},
        "diagonal": {"w": torch.ones(2)},
        "deviations": {"w": torch.ones(1, 2)},
    }
    with pytest.raises(ValueError, match=message):
        LowRankGaussian(**{**parts, **change}, shared=False)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"precision.w": torch.ones(2)}, "has no tensor precision.w"),
        ({"diagonal.w": torch.ones(2)}, "mean and deviations must have the same keys"),
        (
            {"diagonal.w": torch.ones(2), "deviations.w": torch.ones(1, 2), "shared_deviations.w": torch.ones(1, 2)},
            "both shared and for each tensor alone",
        ),
    ],
)
def test_tensors_of_something_else_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRankGaussian.from_tensors({"w": torch.zeros(2)}, tensors, META)
