"""Options out of their range, and options without effect, are refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from varlora import IVON


def made(**options: Any) -> IVON:
    return IVON([torch.zeros(1, requires_grad=True)], **{"lr": 0.1, "ess": 100.0, "hess_init": 0.5} | options)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"ess": 0.0}, "ess=0.0"),
        ({"ess": -3}, "ess=-3"),
        ({"ess": "many"}, "ess='many'; it must be a positive finite number, 'auto', or None"),
        ({"hess_init": 0.0}, "hess_init=0.0"),
        ({"hess_init": None}, "hess_init=None; it must be a positive finite number, or 'auto'"),
        ({"betas": (1.0, 0.9)}, "betas="),
        ({"betas": (0.9, 1.01)}, "betas="),
        ({"betas": (0.9, "1")}, "betas="),
        ({"betas": 0.9}, "betas=0.9"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"clip_radius": 0.0}, "clip_radius=0.0"),
        ({"prior": "learned"}, "prior='learned'"),
        ({"update": "sgd"}, "update='sgd'; it must be 'newton' or 'adam'"),
        ({"update": "adam", "adam_beta2": 1.0}, "adam_beta2=1.0"),
        ({"update": "adam", "adam_eps": 0.0}, "adam_eps=0.0"),
    ],
)
def test_an_option_out_of_range_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        made(**given)


@pytest.mark.parametrize(
    ("update", "given", "default"),
    [
        ("adam", {"clip_radius": 1e-3}, "inf"),
        ("adam", {"rescale_lr": True}, "False"),
        ("adam", {"debias": False}, "True"),
        ("newton", {"adam_beta2": 0.99}, "0.999"),
        ("newton", {"adam_eps": 1e-6}, "1e-08"),
    ],
)
def test_an_option_of_the_other_update_is_refused(update: str, given: dict[str, Any], default: str) -> None:
    [name] = given
    with pytest.raises(ValueError, match=rf"{name}=.* has no effect with update='{update}'. Leave it at {default}"):
        made(update=update, **given)
    made(update="newton" if update == "adam" else "adam", **given)


def test_what_may_be_left_open_or_at_its_bound() -> None:
    made(ess=None)
    made(ess="auto", hess_init="auto")
    made(betas=(0.0, 1.0))


def test_a_groups_own_options_are_checked_and_a_bad_group_is_not_kept() -> None:
    optimizer = made(update="adam")
    with pytest.raises(ValueError, match="clip_radius"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "clip_radius": 1.0})
    assert len(optimizer.param_groups) == 1
