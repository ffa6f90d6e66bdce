"""λ and h0 from the number of examples."""

from __future__ import annotations

from typing import Any

import pytest

from varlora.ivon.auto import auto_ess, auto_hess_init, is_open, root_ess, settle


def test_auto_starts_at_one_unit_of_precision_for_each_example() -> None:
    for n in (1, 150, 10_000):
        assert auto_ess(n) * auto_hess_init(n, auto_ess(n)) == pytest.approx(n)
        assert auto_hess_init(n, auto_ess(n)) == pytest.approx(0.01)


def test_the_rule_of_2025() -> None:
    assert root_ess(16) == 20_000.0


@pytest.mark.parametrize(
    ("given", "ess", "hess_init"),
    [
        ({"ess": "auto", "hess_init": "auto"}, 20_000.0, 0.01),
        ({"ess": "auto", "hess_init": 0.5}, 20_000.0, 0.5),
        ({"ess": 1000.0, "hess_init": "auto"}, 1000.0, 0.2),
        ({"ess": None, "hess_init": 1e-3}, 5000 * 200**0.5, 1e-3),
        ({"ess": 7.0, "hess_init": 0.5}, 7.0, 0.5),
    ],
)
def test_only_what_is_open_is_filled_in(given: dict[str, Any], ess: float, hess_init: float) -> None:
    numbers = not {"auto", None} & set(given.values())
    given = {"variance": "hessian", **given}
    assert is_open(given) != numbers
    settle(given, 200)
    assert (given["ess"], given["hess_init"]) == pytest.approx((ess, hess_init))
    assert not is_open(given)


def test_a_variance_that_follows_the_fit_waits_for_lambda_alone() -> None:
    group = {"variance": "fit", "ess": "auto", "hess_init": "auto"}
    assert is_open(group)
    settle(group, 200)
    assert (group["ess"], group["auto_ess"], group["hess_init"]) == (20_000.0, 20_000.0, "auto")
    assert not is_open(group)
