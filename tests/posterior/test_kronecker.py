"""The Kronecker-factored Gaussian against dense covariances, and what it accepts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from laplace_problems import CASES, by_key, tensor
from varlora.posterior import KroneckerGaussian, Posterior, PosteriorMeta, linearisable
from varlora.posterior.kronecker import KroneckerFactors

META = PosteriorMeta(method="laplace")


def eigenpairs(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    kept = len(values) if rank is None else rank
    return values.clamp(min=0).flip(0)[:kept], vectors.flip(1)[:, :kept]


def factors(out: Tensor, into: Tensor, ranks: tuple[int | None, int | None] = (None, None)) -> KroneckerFactors:
    (out_values, out_vectors), (in_values, in_vectors) = eigenpairs(out, ranks[0]), eigenpairs(into, ranks[1])
    return KroneckerFactors(out_vectors=out_vectors, out_values=out_values, in_vectors=in_vectors, in_values=in_values)


def psd(n: int, seed: int) -> Tensor:
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT / n


def covariance(q: KroneckerGaussian, key: str) -> Tensor:
    """The dense covariance of a tensor's entries, row by row, inverted as a whole."""
    f = q.factors[key]
    g = f.out_vectors * f.out_values @ f.out_vectors.mT
    k = f.in_vectors * f.in_values @ f.in_vectors.mT
    precision = torch.kron(g, k)
    sigma = torch.linalg.inv(precision + q.prior_precision[key] * torch.eye(len(precision), dtype=torch.float64))
    if key in q.pruned:
        kept = (~q.pruned[key]).flatten().double()
        sigma = kept[:, None] * sigma * kept
    return sigma


def gaussian(ranks: tuple[int | None, int | None] = (None, None)) -> KroneckerGaussian:
    """A matrix, a bias, and a tensor that is known exactly."""
    return KroneckerGaussian(
        mean={
            "w": torch.arange(12, dtype=torch.float64).reshape(3, 4),
            "b": torch.ones(3, dtype=torch.float64),
            "fixed": torch.full((2, 2), 7.0, dtype=torch.float64),
        },
        factors={
            "w": factors(psd(3, 0), psd(4, 1), ranks),
            "b": factors(psd(3, 2), torch.ones(1, 1, dtype=torch.float64)),
        },
        prior_precision={"w": 0.5, "b": 2.0},
        meta=META,
    )


RANKS = [(None, None), (None, 2), (1, None), (2, 1)]


# Against dense matrices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "lora_seq"])
def test_the_oracles_posterior_covariance(kind: str) -> None:
    case = CASES[kind]
    q = KroneckerGaussian(
        mean={f"{name}.weight": tensor(case["weights"][name]) for name in case["trainable"]},
        factors={
            f"{block['tensor']}.weight": factors(tensor(block["out"]), tensor(block["in"])) for block in case["kron"]
        },
        prior_precision=by_key(kind, 1.0),
    )
    expected, start = tensor(case["kron_laplace"]["posterior_covariance"]), 0
    for name in case["trainable"]:
        key = f"{name}.weight"
        n = q.mean[key].numel()
        block = expected[start : start + n, start : start + n]
        torch.testing.assert_close(q.variance[key].flatten(), block.diagonal(), rtol=1e-8, atol=1e-10)
        every = torch.eye(n, dtype=torch.float64).reshape(1, n, *q.mean[key].shape)
        torch.testing.assert_close(q.quadratic_form(key, every)[0], block, rtol=1e-8, atol=1e-10)
        start += n


@pytest.mark.parametrize("ranks", RANKS)
def test_variances_and_quadratic_forms_are_those_of_the_dense_inverse(ranks: tuple[int | None, int | None]) -> None:
    q = gaussian(ranks)
    assert isinstance(q, Posterior)
    assert linearisable(q) is q
    for key in ("w", "b"):
        sigma = covariance(q, key)
        torch.testing.assert_close(q.variance[key].flatten(), sigma.diagonal(), rtol=1e-10, atol=1e-12)
        v = torch.randn(2, 5, *q.mean[key].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = v.flatten(2) @ sigma @ v.flatten(2).mT
        torch.testing.assert_close(q.quadratic_form(key, v), expected, rtol=1e-10, atol=1e-12)
    assert not q.variance["fixed"].any()
    assert not q.quadratic_form("fixed", torch.ones(1, 2, 2, 2)).any()


@pytest.mark.parametrize("ranks", RANKS)
def test_draws_have_the_dense_covariance(ranks: tuple[int | None, int | None]) -> None:
    q = gaussian(ranks)
    sigma = covariance(q, "w")
    generator = torch.Generator().manual_seed(0)
    draws = torch.vmap(lambda _: q.sample(generator)["w"].flatten(), randomness="different")(torch.zeros(8_000))
    centred = draws - q.mean["w"].flatten()
    error = centred.mT @ centred / len(draws) - sigma
    spread = (torch.outer(sigma.diagonal(), sigma.diagonal()) + sigma**2).sqrt() / len(draws) ** 0.5
    assert (error.abs() < 5 * spread).all()
    assert (centred.mean(0).abs() < 5 * sigma.diagonal().sqrt() / len(draws) ** 0.5).all()
    assert error.norm() < 0.2 * (sigma - torch.diag(sigma.diagonal())).norm()  # it sees the correlations


def test_no_curvature_leaves_the_prior() -> None:
    q = dataclasses.replace(
        gaussian(), factors={"w": factors(0 * psd(3, 0), psd(4, 1), (None, 2))}, prior_precision={"w": 0.5}
    )
    torch.testing.assert_close(q.variance["w"], torch.full((3, 4), 2.0, dtype=torch.float64))


# Draws ---------------------------------------------------------------------------------------------------------


def test_draws_are_in_float32_and_equal_for_equal_seeds_before_and_after_pruning() -> None:
    wide = gaussian((None, 2))
    q = KroneckerGaussian(
        mean={key: m.to(torch.bfloat16) for key, m in wide.mean.items()},
        factors={key: f.to(torch.ones(1)) for key, f in wide.factors.items()},
        prior_precision=wide.prior_precision,
    )
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1] = True
    pruned = q.zeroed({"w": mask}, META)
    first, second = (x.sample(torch.Generator().manual_seed(1)) for x in (q, pruned))
    assert list(first) == ["b", "fixed", "w"]
    assert {t.dtype for t in first.values()} == {torch.float32}
    assert torch.equal(first["fixed"], torch.full((2, 2), 7.0))
    assert torch.equal(second["w"][mask], torch.zeros(4))
    assert torch.equal(second["w"][~mask], first["w"][~mask])
    assert torch.equal(second["b"], first["b"])


# Operations ----------------------------------------------------------------------------------------------------


def test_pruned_entries_are_exactly_zero_and_masks_add_up() -> None:
    first, second = torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    first[0, 1], second[2] = True, True
    fixed = torch.tensor([[True, False], [False, False]])
    q = gaussian((None, 2)).zeroed({"w": first}, META).zeroed({"w": second, "fixed": fixed}, PosteriorMeta(method="x"))
    assert q.meta.method == "x"
    assert torch.equal(q.pruned["w"], first | second)
    assert not q.mean["w"][first | second].any()
    assert q.mean["fixed"].tolist() == [[0, 7], [7, 7]]
    sigma = covariance(q, "w")
    torch.testing.assert_close(q.variance["w"].flatten(), sigma.diagonal(), rtol=1e-10, atol=1e-12)
    v = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(q.quadratic_form("w", v), v.flatten(2) @ sigma @ v.flatten(2).mT, rtol=1e-10, atol=1e-12)


def test_tempering_multiplies_the_covariance() -> None:
    q = gaussian((None, 2))
    warm = q.scaled(4.0, META)
    for key in q.mean:
        torch.testing.assert_close(warm.variance[key], 4 * q.variance[key])
    torch.testing.assert_close(covariance(warm, "w"), 4 * covariance(q, "w"))
    with pytest.raises(ValueError, match="precisions of b out of the range"):
        q.scaled(1e-320, META)


def test_round_trip_through_tensors() -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 0] = True
    q = gaussian((None, 2)).zeroed({"w": mask}, META)
    back = KroneckerGaussian.from_tensors(q.point, q.tensors(), q.meta)
    first, second = (x.sample(torch.Generator().manual_seed(0)) for x in (q, back))
    assert all(torch.equal(first[key], second[key]) for key in q.mean)
    assert all(torch.equal(q.variance[key], back.variance[key]) for key in q.mean)
    assert back.prior_precision == q.prior_precision
    assert back.tensors().keys() == q.tensors().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w.out_values": None}, "lacks w.out_values"),
        ({"w.prior_precision": None}, "lacks w.prior_precision"),
        ({"w.prior_precision": torch.ones(2)}, "must be one number"),
        ({"w.strange": torch.ones(1)}, "w.strange is not part of"),
        ({"other.out_values": torch.ones(1)}, "other.out_values is not part of"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    q = gaussian()
    tensors = {name: t for name, t in {**q.tensors(), **change}.items() if t is not None}
    with pytest.raises(ValueError, match=message):
        KroneckerGaussian.from_tensors(q.point, tensors, META)


def changed(name: str, value: Tensor) -> dict[str, Any]:
    return {"factors": {**gaussian().factors, "w": dataclasses.replace(gaussian().factors["w"], **{name: value})}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": {"w": torch.zeros(3, 4)}}, r"factors of \['b'\], which have no mean"),
        ({"mean": {**gaussian().mean, "w": torch.zeros(3, 2, 2)}}, r"mean of w has shape \(3, 2, 2\)"),
        ({"mean": {**gaussian().mean, "w": torch.full((3, 4), torch.inf)}}, "mean of w has 12 NaN or infinite"),
        ({"prior_precision": {"w": 1.0}}, r"same keys; only one of them has \['b'\]"),
        ({"prior_precision": {"w": 1.0, "b": 0.0}}, "prior_precision of b is 0.0"),
        ({"prior_precision": {"w": torch.inf, "b": 1.0}}, "prior_precision of w is inf"),
        (changed("out_values", torch.ones(2)), r"out_vectors of w have shape \(3, 3\) and out_values \(2,\)"),
        (changed("in_vectors", torch.eye(3)), r"in_vectors of w have shape \(3, 3\)"),
        (changed("in_values", -torch.ones(4)), "in_values of w must be at least 0; the smallest is -1"),
        (changed("in_vectors", torch.ones(4, 4)), "in_vectors of w must have orthonormal columns"),
        (changed("out_vectors", torch.eye(3, dtype=torch.float16)), "out_vectors of w must be finite and float32"),
        (changed("out_values", torch.tensor([1.0, torch.nan, 0.0])), "out_values of w must be finite"),
        ({"pruned": {"w": torch.ones(3, 4)}}, "pruned mask of w must be bool"),
        ({"pruned": {"w": torch.ones(3, 4, dtype=torch.bool)}}, "mean of w is not 0 where it is pruned"),
        ({"pruned": {"fixed": torch.ones(2, 2, dtype=torch.bool)}}, r"pruned masks of \['fixed'\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(gaussian(), **change)
