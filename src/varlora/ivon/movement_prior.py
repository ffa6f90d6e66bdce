r"""The movement prior: each tensor's own N(m0, s²), as wide as training has moved the tensor.

m0 is where training began: LoRA's random A says nothing yet, and a trained layer says what it was trained for. As for
the adaptive prior, dKL/ds² = 0 gives, now around m0,

    s² = mean_j((m_j − m0_j)² + v_j).

While a tensor has moved little, v is s² but for a little, so this equation feeds on itself: the noise outgrows what has
been learned (of a movement of .01, five times over at N = 300), and a short training drowns in it; and where a
tensor has moved far, v is small beside the movement, and the noise less than held-out rows ask for. Instead

    s = w · √mean_j((m_j − m0_j)²),        at least 1e-4,

so that the noise begins at nearly nothing and grows with what is learned, at any learning rate. s follows it a tenth of
the way in logarithms at each step. The width w of `prior_width="auto"` is 4 t/T after t of T steps
(`ivon.auto.set_prior_width`): the noise of the beginning costs accuracy that the noise of the end does not
(docs/decisions.md). The prior is tempered with the likelihood: λδ = (λ/λ_0)/s², with λ_0 where λ began, so that v is in
proportion to λ_0/λ:

    v = (λ_0/λ) · 1 / (λ_0 h + 1/s²).

Source: our choice (docs/auto.md). A prior around the start is Li et al. 2018, arXiv 1802.01483 (L2-SP); the closed form
Cong et al. 2025, arXiv 2506.14280; tempering prior and likelihood alike, Wenzel et al. 2020, arXiv 2002.02405.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from varlora.ivon.adaptive_prior import average, followed
from varlora.ivon.numbers import number_of
from varlora.ivon.prior import Group, Prior, Require, State

if TYPE_CHECKING:
    from torch import Tensor

FINAL_WIDTH = 4.0
"""w where training ends, of `prior_width="auto"`."""
PRIOR_STD_MIN = 1e-4


class MovementPrior(Prior):
    """N(m0, (λ_0/λ) s²), as wide as the tensor has moved; see the module.

    The state holds 1/s² as "prior_precision", m0 as "start", and λ_0, the λ that there was when the state was made, as
    "ess_start".

    Example:
        >>> MovementPrior().delta({"prior_precision": 50.0, "ess_start": 1000.0}, {"ess": 100.0})
        0.05
    """

    name = "movement"
    compared = ("prior", "prior_width")
    states = 1.0

    def check(self, group: Group, require: Require) -> None:
        """A width in its range, the Adam update, and nothing that would set or learn the variance otherwise."""
        open_width = isinstance(group["prior_width"], str) and group["prior_width"] == "auto"
        width = "a positive finite number, or 'auto'"
        require("prior_width", open_width or 0 < number_of(group["prior_width"]) < math.inf, width)
        require(
            "update",
            group["update"] == "adam",
            "'adam' with prior='movement' (Newton's step is divided by h + δ, and that prior's δ holds still whatever "
            "has not moved yet), or the prior 'adaptive' or 'fixed'",
        )
        require(
            "weight_decay",
            number_of(group["weight_decay"]) == 0,
            "0 with prior='movement', which makes δ from the training; with prior='fixed' it is δ",
        )
        require(
            "betas",
            number_of(group["betas"][1]) == 1,
            "(β1, 1) with prior='movement': Price's estimate of h divides by the noise, of which there is next to none "
            "at first. To learn h, take prior='adaptive' or 'fixed'",
        )

    def check_saved(self, index: int, entries: Sequence[State]) -> None:
        """Refuses states without a start."""
        if any(entry and "start" not in entry for entry in entries):
            raise ValueError(
                f"this state's param group {index} has prior='movement' and no 'start' by parameter: it was written "
                "under another prior. Resume with that prior, or start afresh."
            )

    def left_open(self) -> Mapping[str, tuple[str, str]]:
        """The width."""
        return {"prior_width": ("width of the movement prior", ", or call set_prior_width")}

    def initial_state(self, like: Tensor, group: Group) -> dict[str, Tensor]:
        """Where training begins, the width of no movement, and λ_0."""
        import torch

        return {
            "start": like.clone(),
            "prior_precision": movement_prior_precision(like, like, group["prior_width"]),
            "ess_start": torch.tensor(float(group["ess"]), dtype=like.dtype, device=like.device),
        }

    def begin_(self, state: State, mean: Tensor) -> None:
        """Training begins where the weights are now."""
        state["start"].copy_(mean)

    def renew_after_move_(self, state: State, mean: Tensor, group: Group) -> None:
        """A tenth of the way to the width of the movement so far."""
        precision = state["prior_precision"]
        precision.copy_(followed_prior_precision(precision, mean, state["start"], group["prior_width"]))

    def delta(self, state: State, group: Group) -> Any:
        """δ = 1/(λ_0 s²)."""
        return state["prior_precision"] / state["ess_start"]

    def mean(self, state: State) -> Tensor | None:
        """Where training began."""
        start: Tensor | None = state.get("start")
        return start

    def width(self, group: Group) -> float | None:
        """w, of the present step."""
        return float(group["prior_width"])

    def set_width(self, group: dict[str, Any], share: float) -> None:
        """w grows, unless it was given as a number."""
        if group["prior_width"] == "auto" or group.get("auto_width"):
            group["prior_width"], group["auto_width"] = growing_width(share), True


def growing_width(share: float) -> float:
    """w of `prior_width="auto"` when a share of the training's steps has been taken.

    Example:
        >>> growing_width(0.0), growing_width(0.5), growing_width(1.0)
        (0.0, 2.0, 4.0)
    """
    return FINAL_WIDTH * min(share, 1.0)


def movement_prior_precision(mean: Tensor, start: Tensor, width: float) -> Tensor:
    """1/s² of the movement so far, a scalar tensor.

    Args:
        mean: m, any shape; part of it may be on other ranks.
        start: m0, same shape.
        width: w, s in units of the root mean square of the movement.

    Example:
        >>> import torch
        >>> start = torch.tensor([0.3, -0.2])
        >>> round(movement_prior_precision(start + 0.1, start, width=3.0).item())       # s = .3
        11
        >>> round(movement_prior_precision(start, start, width=3.0).item())
        100000000
    """
    moved = average((mean - start).square())
    return 1 / (width**2 * moved).clamp(min=PRIOR_STD_MIN**2)


def followed_prior_precision(precision: Tensor, mean: Tensor, start: Tensor, width: float) -> Tensor:
    """1/s² after a step: a tenth of the way, in logarithms, to `movement_prior_precision`.

    Args:
        precision: the present 1/s², a scalar tensor.
        mean: m.
        start: m0.
        width: w.

    Example:
        >>> import torch
        >>> start = torch.zeros(3)
        >>> present = torch.tensor(1e8)
        >>> round(followed_prior_precision(present, start + 1 / 3, start, width=3.0).item() / 1e7, 2)   # to 1e8 ** .9
        1.58
    """
    return followed(precision, movement_prior_precision(mean, start, width))
