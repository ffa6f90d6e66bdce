"""The evidence and the prior that maximises it: against other programs, closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from laplace_problems import CASES, READOUT, batches, by_key, network
from varlora.curvature import Curvature, NoBestPriorError, best_prior_precision, curvature_of, log_marginal_likelihood

ORACLE = [(kind, structure) for kind in CASES for structure in ("diag", "kron")]


def curvature(kind: str, structure: str) -> Curvature:
    return curvature_of(network(kind), batches(kind), readout=READOUT, structure=structure)  # type: ignore[arg-type]


def diagonal(theta: list[float], h: list[float], log_likelihood: float = 0.0) -> Curvature:
    return Curvature(
        weights={"w": torch.tensor(theta, dtype=torch.float64)},
        log_likelihood=log_likelihood,
        num_examples=1,
        diagonal={"w": torch.tensor(h, dtype=torch.float64)},
    )


@pytest.mark.parametrize(("kind", "structure"), ORACLE)
def test_the_evidence_and_its_optima_agree_with_the_oracle(kind: str, structure: str) -> None:
    found, expected = curvature(kind, structure), CASES[kind]["diag" if structure == "diag" else "kron_laplace"]
    for at in expected["log_marglik"]:
        value = log_marginal_likelihood(found, by_key(kind, at["prior"]))
        assert value == pytest.approx(at["value"], rel=1e-9)
    best = best_prior_precision(found)
    assert best == pytest.approx(expected["best_scalar"]["prior"], rel=1e-6)
    assert log_marginal_likelihood(found, best) == pytest.approx(expected["best_scalar"]["log_marglik"], rel=1e-10)
    each = {key: best_prior_precision(found, key) for key in found.weights}
    assert each == pytest.approx(by_key(kind, expected["best_per_tensor"]["prior"]), rel=1e-6)
    assert log_marginal_likelihood(found, each) == pytest.approx(expected["best_per_tensor"]["log_marglik"], rel=1e-10)
    assert log_marginal_likelihood(found, each) > log_marginal_likelihood(found, best)


@pytest.mark.parametrize(("kind", "structure"), ORACLE)
def test_the_optimum_is_stationary_to_rounding_and_a_maximum(kind: str, structure: str) -> None:
    found = curvature(kind, structure)
    best = best_prior_precision(found)
    h = torch.cat(list(found.eigenvalues.values()))
    norm = sum(float((w**2).sum()) for w in found.weights.values())
    assert float((h / (h + best)).sum()) / best == pytest.approx(norm, rel=1e-12)
    for factor in (0.9, 1.1):
        assert log_marginal_likelihood(found, factor * best) < log_marginal_likelihood(found, best)
    step = 1e-4  # the derivative by log δ, by differences, is ½ (Σ h / (h + δ) − δ ‖θ‖²)
    for delta in (0.3 * best, 3 * best):
        difference = log_marginal_likelihood(found, delta * math.exp(step)) - log_marginal_likelihood(
            found, delta * math.exp(-step)
        )
        slope = (float((h / (h + delta)).sum()) - delta * norm) / 2
        assert difference / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_the_evidence_of_a_gaussian_model_is_the_integral_itself() -> None:
    """log p(y | θ) = −½ h (θ − θ̂)²; Laplace's formula at the posterior's mode is exact."""
    h, peak, delta = 3.0, 1.5, 0.7
    mode = h * peak / (h + delta)
    found = diagonal([mode], [h], log_likelihood=-0.5 * h * (mode - peak) ** 2)

    theta = torch.linspace(-20, 20, 100_001, dtype=torch.float64)
    likelihood = torch.exp(-0.5 * h * (theta - peak) ** 2)
    prior = torch.exp(-0.5 * delta * theta**2) * math.sqrt(delta / (2 * math.pi))
    expected = math.log(torch.trapezoid(likelihood * prior, theta))
    assert log_marginal_likelihood(found, delta) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9])
@pytest.mark.parametrize("curved", [1e-15, 1.0, 1e12])
def test_one_eigenvalue_has_a_closed_form_at_any_scale(scale: float, curved: float) -> None:
    """δ² + h δ − h / θ² = 0."""
    found = diagonal([scale, 0.0], [curved, 0.0])
    ratio = 4 / (curved * scale**2)
    expected = 2 / scale**2 / (1 + math.sqrt(1 + ratio)) if ratio < 1e300 else math.sqrt(curved) / scale
    assert best_prior_precision(found) == pytest.approx(expected, rel=1e-10)


def test_there_is_no_best_prior_without_weights_or_without_curvature() -> None:
    with pytest.raises(NoBestPriorError, match=r"every weight of the adapter is 0.*goes to infinity"):
        best_prior_precision(diagonal([0.0, 0.0], [1.0, 2.0]))
    with pytest.raises(NoBestPriorError, match=r"every curvature of w is 0.*goes to 0"):
        best_prior_precision(diagonal([1.0, 0.0], [0.0, 0.0]), "w")


def test_priors_that_do_not_fit_are_refused() -> None:
    found = diagonal([1.0], [1.0])
    for prior in (0.0, -1.0, math.nan, {"u": 1.0}):
        with pytest.raises(ValueError, match="prior precision of w"):
            log_marginal_likelihood(found, prior)
    zeros = diagonal([0.0], [1.0], log_likelihood=-2.0)
    assert log_marginal_likelihood(zeros, math.inf) == -2.0
