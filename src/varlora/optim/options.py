"""The ranges of IVON's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

Prior = Literal["fixed", "adaptive", "movement"]
Update = Literal["newton", "adam"]

NEWTON_ONLY: Mapping[str, Any] = {"clip_radius": math.inf, "rescale_lr": False, "debias": True}
ADAM_ONLY: Mapping[str, Any] = {"adam_beta2": 0.999, "adam_eps": 1e-8}
"""Options that act on one update alone, with the values that they have when nobody sets them."""


def check_options(group: Mapping[str, Any]) -> None:
    """Checks a parameter group of IVON.

    Args:
        group: the group with all its options.

    Raises:
        ValueError: an option is out of its range or has no effect; the message names it, its value and what is allowed.

    Example:
        >>> options = dict(lr=0.1, ess=10.0, hess_init=1.0, betas=(0.9, 0.999), weight_decay=0.0, prior="fixed")
        >>> check_options({**options, "update": "newton", **NEWTON_ONLY, **ADAM_ONLY})
    """

    def require(name: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise ValueError(f"IVON got {name}={group[name]!r}; it must be {allowed}.")

    def number(name: str) -> float:
        return _number(group[name])

    open_ess = group["ess"] is None or (isinstance(group["ess"], str) and group["ess"] == "auto")
    open_hess_init = isinstance(group["hess_init"], str) and group["hess_init"] == "auto"
    require("lr", 0 < number("lr") < math.inf, "a positive finite number")
    require("ess", open_ess or 0 < number("ess") < math.inf, "a positive finite number, 'auto', or None")
    require("hess_init", open_hess_init or 0 < number("hess_init") < math.inf, "a positive finite number, or 'auto'")
    require("weight_decay", 0 <= number("weight_decay") < math.inf, "a finite number, at least 0")
    require("clip_radius", number("clip_radius") > 0, "positive (math.inf for none)")
    require("prior", group["prior"] in get_args(Prior), "'fixed', 'adaptive' or 'movement'")
    require("update", group["update"] in ("newton", "adam"), "'newton' or 'adam'")
    require("adam_beta2", 0 <= number("adam_beta2") < 1, "in [0, 1)")
    require("adam_eps", 0 < number("adam_eps") < math.inf, "a positive finite number")
    betas = group["betas"]
    pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    require(
        "betas",
        pair and 0 <= _number(betas[0]) < 1 and 0 <= _number(betas[1]) <= 1,
        "two numbers, the first in [0, 1), the second in [0, 1] (1 keeps h at h0)",
    )
    if group["prior"] == "movement":
        require(
            "update",
            group["update"] == "adam",
            "'adam' with prior='movement' (Newton's step is divided by h + δ, and that prior's δ holds still whatever "
            "has not moved yet), or the prior 'adaptive' or 'fixed'",
        )
        require(
            "weight_decay",
            number("weight_decay") == 0,
            "0 with prior='movement', which makes δ from the training; with prior='fixed' it is δ",
        )
        require(
            "betas",
            _number(betas[1]) == 1,
            "(β1, 1) with prior='movement': Price's estimate of h divides by the noise, of which there is next to none "
            "at first. To learn h, take prior='adaptive' or 'fixed'",
        )
    update, other = (NEWTON_ONLY, "newton") if group["update"] == "adam" else (ADAM_ONLY, "adam")
    for name, default in update.items():
        if group[name] != default:
            raise ValueError(
                f"IVON got {name}={group[name]!r}, which has no effect with update={group['update']!r}. Leave it at "
                f"{default!r}, or use update={other!r}."
            )


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan
