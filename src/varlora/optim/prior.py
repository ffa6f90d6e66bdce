"""The prior that IVON's options name, per tensor: what of it the state holds, how it is renewed, and the δ it gives.

    fixed       N(0, 1/(λδ)), δ = weight_decay
    adaptive    N(0, s²), s² in closed form                        δ = 1/(λ s²)       (`optim.adaptive_prior`)
    movement    N(m0, (λ_0/λ) s²), s from what has been moved       δ = 1/(λ_0 s²)     (`optim.movement_prior`)

The state holds 1/s² as "prior_precision", m0 as "start", and λ_0, the λ that there was when the state was made, as
"ess_start".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from varlora.optim.adaptive_prior import initial_prior_precision, renewed_prior_precision
from varlora.optim.movement_prior import followed_prior_precision, movement_prior_precision


def prior_state(like: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the prior adds to a tensor's state at first.

    Args:
        like: the tensor, in the state's dtype.
        group: its parameter group.

    Example:
        >>> prior_state(torch.zeros(2), {"prior": "movement", "prior_width": 3.0, "ess": 100.0})["ess_start"]
        tensor(100.)
        >>> prior_state(torch.zeros(2), {"prior": "fixed"})
        {}
    """
    if group["prior"] == "movement":
        return {
            "start": like.clone(),
            "prior_precision": movement_prior_precision(like, like, group["prior_width"]),
            "ess_start": torch.tensor(float(group["ess"]), dtype=like.dtype, device=like.device),
        }
    if group["prior"] == "adaptive":
        given = torch.tensor(group["ess"] * group["weight_decay"], dtype=like.dtype, device=like.device)
        return {"prior_precision": given if group["weight_decay"] else initial_prior_precision(like)}
    return {}


def renew_prior_(state: Mapping[str, Tensor], mean: Tensor, group: Mapping[str, Any]) -> None:
    """One step's learning of the prior, in place; nothing of a fixed one.

    Args:
        state: the tensor's, with its Hessian.
        mean: m.
        group: its parameter group.
    """
    if group["prior"] == "adaptive":
        renewed = renewed_prior_precision(state["prior_precision"], mean, state["hessian"], group["ess"])
        state["prior_precision"].copy_(renewed)
    elif group["prior"] == "movement":
        followed = followed_prior_precision(state["prior_precision"], mean, state["start"], group["prior_width"])
        state["prior_precision"].copy_(followed)


def prior_delta(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """δ, a scalar; see the module.

    Example:
        >>> prior_delta({"prior_precision": 50.0}, {"prior": "adaptive", "ess": 100.0})
        0.5
        >>> prior_delta({"prior_precision": 50.0, "ess_start": 1000.0}, {"prior": "movement", "ess": 100.0})
        0.05
    """
    if group["prior"] == "adaptive":
        return state["prior_precision"] / group["ess"]
    if group["prior"] == "movement":
        return state["prior_precision"] / state["ess_start"]
    return group["weight_decay"]
