"""Recipes: what each fills in, and what the user's own options do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from varlora import IVON, IVONConfig
from varlora.ivon.config import RECIPES, Recipe

CONG2024 = {
    "lr": 0.03,
    "ess": 1e6,
    "hess_init": 1e-3,
    "betas": (0.9, 0.99999),
    "weight_decay": 0.0,
    "clip_radius": 1e-3,
    "rescale_lr": False,
    "prior": "fixed",
    "update": "newton",
    "variance": "hessian",
    "adam_beta2": 0.999,
    "adam_eps": 1e-8,
}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "auto",
            {
                "lr": 2e-4,
                "ess": "auto",
                "hess_init": "auto",
                "betas": (0.9, 1.0),
                "weight_decay": 0.0,
                "clip_radius": math.inf,
                "rescale_lr": False,
                "prior": "fixed",
                "update": "adam",
                "variance": "fit",
                "adam_beta2": 0.999,
                "adam_eps": 1e-8,
            },
        ),
        ("cong2024", CONG2024),
        ("cong2025", CONG2024 | {"ess": None, "prior": "adaptive"}),
    ],
)
def test_each_recipe_is_its_numbers(recipe: Recipe, expected: dict[str, Any]) -> None:
    """`ess=None` of IVON is the rule 5000 √N."""
    config = IVONConfig(recipe=recipe)
    assert config.resolved(learning_rate=2e-4).optimizer_kwargs() == expected
    IVON([torch.zeros(1, requires_grad=True)], **expected)


def test_the_default_is_auto() -> None:
    assert IVONConfig() == IVONConfig(recipe="auto")


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_given_goes_before_the_recipe(recipe: Recipe) -> None:
    given = {"lr": 0.5, "ess": 3.0, "hess_init": 0.25, "betas": (0.0, 1.0), "weight_decay": 0.1, "prior": "fixed"}
    given["variance"] = "hessian"
    filled = IVONConfig(recipe=recipe, **given, draws=3).resolved(learning_rate=1e-9)
    assert {name: getattr(filled, name) for name in given} == given
    assert filled.draws == 3
    assert filled.resolved(learning_rate=7.0) == filled
    zeros = IVONConfig(recipe=recipe, weight_decay=0.0, rescale_lr=False).resolved()
    assert (zeros.weight_decay, zeros.rescale_lr) == (0.0, False)


def test_auto_without_a_learning_rate_says_whose_to_pass() -> None:
    with pytest.raises(ValueError, match=r"no learning rate of its own.*IVONConfig\(lr=args\.learning_rate\)"):
        IVONConfig().optimizer_kwargs()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "cong2026"}, "recipe is 'cong2026'; it must be one of auto, cong2024, cong2025"),
        ({"draws": 0}, "draws is 0; it must be a positive integer"),
        ({"draws": 1.5}, "draws is 1.5; it must be a positive integer"),
        ({"held_out": "test"}, "held_out is 'test'; it must be one of auto, validation, train, none"),
    ],
)
def test_what_does_not_exist_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IVONConfig(**given)


@pytest.mark.parametrize(
    ("given", "ess"),
    [
        ({"ess": 1e4, "held_out": "train"}, r"ess is 10000\.0 \(recipe 'auto'\)"),
        ({"recipe": "cong2024", "held_out": "validation"}, r"ess is 1000000\.0 \(recipe 'cong2024'\)"),
        ({"recipe": "cong2025", "held_out": "train"}, r"ess is 5000 sqrt\(N\)"),
    ],
)
def test_held_out_rows_that_steer_nothing_are_refused(given: dict[str, Any], ess: str) -> None:
    with pytest.raises(ValueError, match=rf"has no effect: held-out rows steer ess='auto', but {ess}"):
        IVONConfig(**given)


@pytest.mark.parametrize("held_out", ["auto", "none", None])
def test_a_number_for_lambda_goes_with_the_defaults(held_out: Any) -> None:
    assert IVONConfig(ess=1e4, held_out=held_out).resolved(1e-3).resolved(1e-3).ess == 1e4
    assert IVONConfig(recipe="cong2024", ess="auto", held_out="train").resolved().held_out == "train"


def test_the_optimizer_does_not_get_what_is_the_trainers() -> None:
    assert not {"held_out", "draws", "recipe"} & IVONConfig(lr=1e-3, held_out="train").optimizer_kwargs().keys()
    assert IVONConfig().resolved().held_out == "auto"
    assert IVONConfig(recipe="cong2025").resolved().held_out == "none"


@pytest.mark.parametrize(
    "given",
    [
        {"ess": -5},
        {"ess": 0.0},
        {"ess": math.nan},
        {"ess": True},
        {"ess": "1e4"},
        {"ess": [1e4]},
        {"lr": 0.0},
        {"lr": "1e-4"},
        {"hess_init": -1.0},
        {"hess_init": "big"},
        {"betas": (0.9,)},
        {"betas": 0.9},
        {"betas": (1.0, 1.0)},
        {"variance": "fit", "betas": (0.9, 0.99)},  # of the Hessian
        {"variance": "fit", "hess_init": 0.01},
        {"variance": "fit", "prior": "adaptive"},
        {"variance": "fit", "weight_decay": 0.1},
        {"variance": "fit", "update": "newton"},
        {"variance": "learned"},
        {"recipe": "cong2024", "variance": "fit"},
        {"weight_decay": -0.1},
        {"clip_radius": 1e-3},  # of the Newton update
        {"recipe": "cong2024", "clip_radius": 0.0},
        {"recipe": "cong2024", "rescale_lr": "no"},
        {"prior": "wide"},
        {"update": "sgd"},
        {"adam_beta2": 1.0},
        {"adam_eps": math.inf},
        {"draws": True},
        {"draws": "2"},
        {"draws": 2.0},
        {"recipe": ["auto"]},
        {"held_out": ["train"]},
    ],
    ids=str,
)
def test_options_are_checked_when_they_are_given(given: dict[str, Any]) -> None:
    """`IVONConfig(ess=-5)` was accepted until training began."""
    with pytest.raises(ValueError, match=r"^(IVON got |recipe is |draws is |held_out is )"):
        IVONConfig(**given)


def test_what_older_versions_had_says_what_took_its_place() -> None:
    with pytest.raises(ValueError, match=r"prior='movement'; it must be .* were replaced by variance='fit'"):
        IVONConfig(prior="movement")  # type: ignore[arg-type]


def test_the_defaults_noise_may_be_constant() -> None:
    """h kept at N/λ_0 and a flat prior: a standard deviation of 1/√N from the first step."""
    options = IVONConfig(lr=1e-3, variance="hessian").optimizer_kwargs()
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = IVON([weight], **options)
    optimizer.settle(25)
    assert optimizer.noise_scale(weight).tolist() == pytest.approx([0.2] * 3)


@pytest.mark.parametrize(
    ("given", "variance"),
    [
        ({}, "fit"),
        ({"ess": 1e4, "hess_init": "auto", "betas": (0.8, 1.0), "weight_decay": 0.0, "update": "adam"}, "fit"),
        ({"prior": "fixed"}, "hessian"),
        ({"prior": "adaptive"}, "hessian"),
        ({"hess_init": 0.01}, "hessian"),
        ({"betas": (0.9, 0.999)}, "hessian"),
        ({"weight_decay": 0.1}, "hessian"),
        ({"update": "newton"}, "hessian"),
    ],
)
def test_what_only_a_hessian_has_asks_for_one(given: dict[str, Any], variance: str) -> None:
    filled = IVONConfig(**given).resolved(1e-3)
    assert filled.variance == filled.resolved(1e-3).variance == variance
    IVON([torch.zeros(1, requires_grad=True)], **filled.optimizer_kwargs())
