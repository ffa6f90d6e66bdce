"""What IVON's options may be: as given, when training begins, and in a saved state."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from varlora.ivon.numbers import number_of
from varlora.ivon.priors import PRIORS

logger = logging.getLogger(__name__)

Update = Literal["newton", "adam"]
Variance = Literal["hessian", "fit"]
Auto = Literal["auto"]

NEWTON_ONLY: Mapping[str, Any] = {"clip_radius": math.inf, "rescale_lr": False, "debias": True}
ADAM_ONLY: Mapping[str, Any] = {"adam_beta2": 0.999, "adam_eps": 1e-8}
"""Options that act on one update alone, with the values that they have when nobody sets them."""
MOVEMENT_REPLACED = (
    "the movement prior, and its width, were replaced by variance='fit', which follows the training loss"
)
"""What to say of `prior="movement"` and `prior_width`, which older versions had."""


def check_options(group: Mapping[str, Any], whose: str = "IVON") -> None:
    """Checks a parameter group of IVON.

    Args:
        group: the group with all its options.
        whose: they are, for the message.

    Raises:
        ValueError: an option is out of its range or has no effect; the message names it, its value and what is allowed.

    Example:
        >>> options = dict(lr=0.1, ess=10.0, hess_init=1.0, betas=(0.9, 0.999), weight_decay=0.0, prior="fixed")
        >>> check_options({**options, "variance": "hessian", "update": "newton", **NEWTON_ONLY, **ADAM_ONLY})
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
    replaced = f" ({MOVEMENT_REPLACED})" if group["prior"] == "movement" else ""
    require("prior", group["prior"] in tuple(PRIORS), f"'fixed' or 'adaptive'{replaced}")
    require("update", group["update"] in ("newton", "adam"), "'newton' or 'adam'")
    require("variance", group["variance"] in ("hessian", "fit"), "'hessian' or 'fit'")
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
    if group["variance"] == "fit":
        unused = "with variance='fit', which keeps no Hessian and has no prior (variance='hessian' does)"
        require("update", group["update"] == "adam", f"'adam' {unused}")
        require("hess_init", open_hess_init, f"left at 'auto' {unused}")
        require("betas", number_of(betas[1]) == 1, f"(β1, 1) {unused}")
        require("weight_decay", number("weight_decay") == 0, f"0 {unused}")
        require("prior", group["prior"] == "fixed", f"left at 'fixed' {unused}")
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
        >>> check_settled({"variance": "fit", "ess": "auto"})              # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ess is 'auto': the effective sample size was never set. Pass IVON(..., ess=...) a number, ...
    """
    openings = {"ess": "effective sample size"}
    if group["variance"] == "hessian":
        openings["hess_init"] = "initial Hessian"
    for name, meaning in openings.items():
        if group[name] is None or isinstance(group[name], str):
            raise ValueError(
                f"{name} is {group[name]!r}: the {meaning} was never set. Pass IVON(..., {name}=...) a number, or "
                "train through VariationalCallback or VariationalTrainerMixin, which set it from the size of the "
                "training set."
            )


def check_saved(index: int, saved: Mapping[str, Any]) -> None:
    """Checks a parameter group of a saved state.

    Args:
        index: of the group, for the message.
        saved: the group.

    Raises:
        ValueError: it is another optimizer's, or of another version of this one.

    Example:
        >>> check_saved(0, {"lr": 0.1})                                    # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: this is no IVON state of this version: param group 0 has ['lr'] and no ess, ...
    """
    if missing := [name for name in ("ess", "hess_init", "update", "prior") if name not in saved]:
        raise ValueError(
            f"this is no IVON state of this version: param group {index} has {sorted(saved)} and no "
            f"{', '.join(missing)}. Resume with the optimizer, and the version of varlora, that wrote the checkpoint, "
            "or start afresh."
        )
    if saved["prior"] == "movement":
        raise ValueError(
            f"this state was written by an older version of varlora, with prior='movement' in param group {index}: "
            f"{MOVEMENT_REPLACED}. Start afresh, or go on with the version that wrote it."
        )
    if saved["prior"] not in tuple(PRIORS):
        raise ValueError(
            f"this state's param group {index} has prior={saved['prior']!r}, and this version of varlora knows "
            f"{', '.join(PRIORS)}. Resume with the version that wrote the checkpoint."
        )


def with_variance(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved parameter group that says its variance; versions that knew none but the Hessian's did not.

    Example:
        >>> with_variance({"lr": 0.1})
        {'variance': 'hessian', 'lr': 0.1}
    """
    return {"variance": "hessian", **saved}


def warn_of_another_posterior(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Warns where a saved group's variance or prior is not that of the optimizer which takes the state over.

    Example:
        >>> group = {"variance": "hessian", "prior": "adaptive"}
        >>> warn_of_another_posterior(saved=group, own=group)
    """
    for name in ("variance", "prior"):
        if saved[name] != own[name]:
            logger.warning(
                "the optimizer's state has %s=%r and this optimizer %r; it goes on with that of the state.",
                name,
                saved[name],
                own[name],
            )
