"""Variants as a plan writes them: what is refused, and which are the same."""

from __future__ import annotations

from typing import Any

import pytest

from compare.plans import variant_of
from varlora.compare.variant import Variant
from varlora.posterior import PredictionConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "sample"}, "mode is 'sample'; did you mean 'samples'"),
        ({"prune_by": "size"}, "prune_by is 'size'; known: magnitude, random, snr, variance"),
        ({"prune_scope": "tensors"}, "did you mean 'tensor'"),
        (
            {"logit_temperature": "test"},
            "'test'; it must be a positive number, none, or validation",
        ),
        ({"samples": 0}, "samples is 0; it must be a whole number from 1"),
        ({"samples": 2.5}, "samples is 2.5"),
        ({"samples": True}, "samples is True"),
        ({"temperature": -1}, "temperature is -1; it must be a finite number, at least 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"prune": 1}, "prune is 1; it must be a fraction from 0 to below 1"),
        ({"prune": "test"}, "prune is 'test'; it must be a fraction from 0 to below 1, or validation"),
        ({"logit_temperature": 0}, "logit_temperature is 0; it must be a positive number"),
        ({"mode": "mean", "temperature": 2}, "temperature is 2, which changes nothing at the mean; use mode: samples"),
        ({"mode": "mean", "samples": 4}, "samples is 4, but mode 'mean' has no draws"),
        ({"mode": "linearised", "samples": 4}, "mode 'linearised' always takes 100 draws"),
        ({"tau": 2}, "has 'tau'; known: logit_temperature, mode"),
        ({"temprature": 2}, "has 'temprature'; did you mean 'temperature'"),
        ("mean", "is 'mean'; write a mapping"),
        ({"tune": "yes"}, "tune is 'yes'; it must be true or false"),
        ({"tune": True, "mode": "samples"}, "mode beside tune: true, which has validation rows choose how to predict"),
        ({"tune": True, "temperature": 2, "prune": 0.1}, "temperature, prune beside tune: true"),
        ({"logit_temperature": "validation", "tune": True}, "logit_temperature beside tune: true"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^rows\.IVON") as caught:
        Variant.from_dict(values, where="rows.IVON")
    assert message in str(caught.value)


def test_what_has_no_effect_does_not_make_another_variant() -> None:
    mean = variant_of(mode="mean")
    assert variant_of(temperature=0, samples=3).key == mean.key
    assert variant_of(mode="linearised", temperature=0).key == mean.key
    assert variant_of(mode="mean", prune=0, prune_by="random", prune_scope="tensor").key == mean.key
    assert variant_of(temperature=1).key == Variant().key
    assert variant_of(prune=0.1, prune_by="random").key != variant_of(prune=0.1).key


def test_every_field_makes_another_variant() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"mode": "mean"},
        {"mode": "linearised"},
        {"samples": 4},
        {"temperature": 2},
        {"prune": 0.5},
        {"prune": "validation"},
        {"prune": 0.5, "prune_by": "variance"},
        {"prune": 0.5, "prune_scope": "tensor"},
        {"logit_temperature": "validation"},
        {"tune": True},
    ]
    assert len({variant_of(**change).key for change in changes}) == len(changes)


def test_fewer_draws_and_a_logit_temperature_share_one_set_of_predictions() -> None:
    made = variant_of(temperature=2).stored_as
    assert variant_of(temperature=2, samples=4, logit_temperature="validation").stored_as == made
    assert variant_of(temperature=4).stored_as != made
    # How many draws there are decides what validation rows choose.
    assert variant_of(prune="validation", samples=4).stored_as != variant_of(prune="validation", samples=8).stored_as


def test_what_is_kept_under_a_key_is_found_by_it() -> None:
    # Another key would have all that is kept predicted anew.
    assert variant_of(mode="mean", prune=0.1).key == "d01571ddeeff00ff"
    assert variant_of(samples=4, logit_temperature="validation", tune=False).key == "e816b2e32e3f123c"


def test_nothing_goes_with_tune_in_python_either() -> None:
    with pytest.raises(ValueError, match="samples beside tune: true"):
        Variant(config=PredictionConfig(samples=4), chosen=frozenset({"tune"}))
    assert Variant.from_dict(variant_of(tune=True).to_dict(), where="") == variant_of(tune=True)


def test_a_plain_dict_gives_it_back() -> None:
    variant = variant_of(
        samples=4, temperature=2, prune="validation", prune_by="variance", logit_temperature="validation"
    )
    assert Variant.from_dict(variant.to_dict(), where="") == variant
