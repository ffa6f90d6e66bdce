"""What IVON's options may be: as given, when training begins, and in a saved state."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from varlora.ivon.numbers import number_of
from varlora.ivon.priors import PRIORS, prior_of

logger = logging.getLogger(__name__)

Update = Literal["newton", "adam"]
Auto = Literal["auto"]

NEWTON_ONLY: Mapping[str, Any] = {"clip_radius": math.inf, "rescale_lr": False, "debias": True}
ADAM_ONLY: Mapping[str, Any] = {"adam_beta2": 0.999, "adam_eps": 1e-8}
"""Options that act on one update alone, with the values that they have when nobody sets them."""


def check_options(group: Mapping[str, Any], whose: str = "IVON") -> None:
    """Checks a parameter group of IVON.

    Args:
        group: the group with all its options.
        whose: they are, for the message.

    Raises:
        ValueError: an option is out of its range or has no effect; the message names it, its value and what is allowed.

    Example:
        >>> options = dict(lr=0.1, ess=10.0, hess_init=1.0, betas=(0.9, 0.999), weight_decay=0.0, prior="fixed")
        >>> check_options({**options, "prior_width": "auto", "update": "newton", **NEWTON_ONLY, **ADAM_ONLY})
    """

    def require(name: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise ValueError(f"{whose} got {name}={group[name]!r}; it must be {allowed}.")

    def number(name: str) -> float:
        return number_of(group[name])

    open_ess = group["ess"] is None or (isinstance(group["ess"], str) and group["ess"] == "auto")
    open_hess_init = isinstance(group["hess_init"], str) and group["hess_init"] == "auto"
    require("lr", 0 < number("lr") < math.inf, "a positive finite number")
    require("ess", open_ess or 0 < number("ess") < math.inf, "a positive finite number, 'auto', or None")
    require("hess_init", open_hess_init or 0 < number("hess_init") < math.inf, "a positive finite number, or 'auto'")
    require("weight_decay", 0 <= number("weight_decay") < math.inf, "a finite number, at least 0")
    require("clip_radius", number("clip_radius") > 0, "positive (math.inf for none)")
    require("prior", group["prior"] in tuple(PRIORS), "'fixed', 'adaptive' or 'movement'")
    require("update", group["update"] in ("newton", "adam"), "'newton' or 'adam'")
    for name in ("rescale_lr", "debias"):
        require(name, isinstance(group[name], bool), "True or False")
    require("adam_beta2", 0 <= number("adam_beta2") < 1, "in [0, 1)")
    require("adam_eps", 0 < number("adam_eps") < math.inf, "a positive finite number")
    betas = group["betas"]
    pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    require(
        "betas",
        pair and 0 <= number_of(betas[0]) < 1 and 0 <= number_of(betas[1]) <= 1,
        "two numbers, the first in [0, 1), the second in [0, 1] (1 keeps h at h0)",
    )
    prior_of(group).check(group, require)
    update, other = (NEWTON_ONLY, "newton") if group["update"] == "adam" else (ADAM_ONLY, "adam")
    for name, default in update.items():
        if group[name] != default:
            raise ValueError(
                f"{whose} got {name}={group[name]!r}, which has no effect with update={group['update']!r}. Leave it at "
                f"{default!r}, or use update={other!r}."
            )


def check_settled(group: Mapping[str, Any]) -> None:
    """Checks that what was left open has been set by the time there is a posterior.

    Raises:
        ValueError: it has not; the message names the option and who can set it.

    Example:
        >>> group = {"ess": 1e4, "hess_init": 0.01, "prior": "movement", "prior_width": "auto"}
        >>> check_settled(group)                                           # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: prior_width is 'auto': the width of the movement prior was never set. ...
    """
    openings = {
        "ess": ("effective sample size", " from the size of the training set"),
        "hess_init": ("initial Hessian", " from the size of the training set"),
    }
    for name, (meaning, rest) in {**openings, **prior_of(group).left_open()}.items():
        if group[name] is None or isinstance(group[name], str):
            raise ValueError(
                f"{name} is {group[name]!r}: the {meaning} was never set. Pass IVON(..., {name}=...) a number, or "
                f"train through VariationalCallback or VariationalTrainerMixin, which set it{rest}."
            )


def check_saved(index: int, saved: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Checks a parameter group of a saved state.

    Args:
        index: of the group, for the message.
        saved: the group.
        entries: the state of each of its parameters.

    Raises:
        ValueError: it is another optimizer's, or of another version of this one.

    Example:
        >>> check_saved(0, {"lr": 0.1}, [])                                # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: this is no IVON state of this version: param group 0 has ['lr'] and no ess, ...
    """
    if missing := [name for name in ("ess", "hess_init", "update", "prior_width") if name not in saved]:
        raise ValueError(
            f"this is no IVON state of this version: param group {index} has {sorted(saved)} and no "
            f"{', '.join(missing)}. Resume with the optimizer, and the version of varlora, that wrote the checkpoint, "
            "or start afresh."
        )
    if saved.get("prior") not in tuple(PRIORS):
        raise ValueError(
            f"this state's param group {index} has prior={saved.get('prior')!r}, and this version of varlora knows "
            f"{', '.join(PRIORS)}. Resume with the version that wrote the checkpoint."
        )
    prior_of(saved).check_saved(index, entries)


def warn_of_another_prior(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Warns where a saved group's prior, or its width, is not that of the optimizer which takes the state over.

    Example:
        >>> group = {"prior": "movement", "prior_width": 3.0}
        >>> warn_of_another_prior(saved=group, own=group)
    """
    names = prior_of(own).compared if saved["prior"] == own["prior"] else ("prior",)
    for name in names:
        of_state, of_this = (
            "auto" if name == "prior_width" and group.get("auto_width") else group.get(name) for group in (saved, own)
        )
        if of_state != of_this:
            logger.warning(
                "the optimizer's state has %s=%r and this optimizer %r; it goes on with that of the state.",
                name,
                of_state,
                of_this,
            )
