"""A prior of IVON's, per tensor: what of it the state holds, how a step renews it, and the δ it gives.

    fixed       N(0, 1/(λδ)), δ = weight_decay                     (`FixedPrior`)
    adaptive    N(0, s²), s² in closed form                        δ = 1/(λ s²)       (`ivon.adaptive_prior`)
    movement    N(m0, (λ_0/λ) s²), s from what has been moved       δ = 1/(λ_0 s²)     (`ivon.movement_prior`)

By name: `ivon.priors`. A prior keeps nothing itself: its options are the parameter group's, and what it has learned is
the tensor's state, so that a checkpoint of the optimizer holds both. Options are checked without waiting for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

Group = Mapping[str, Any]
"""A parameter group of IVON."""
State = Mapping[str, Any]
"""A tensor's state."""
Require = Callable[[str, bool, str], None]
"""(option, whether it is allowed, what is): raises ValueError where it is not."""


class Prior:
    """The prior of a tensor; subclasses say which."""

    name: ClassVar[str]
    pulls: ClassVar[bool] = False
    """Whether δ m is part of the mean's step."""
    compared: ClassVar[tuple[str, ...]] = ("prior",)
    """Options in which an optimizer should be like the state that it takes over."""
    states: ClassVar[float] = 0.0
    """Copies of the tensor that its state holds."""

    def check(self, group: Group, require: Require) -> None:
        """Refuses options that are out of range, or without effect, under this prior."""
        require(
            "prior_width",
            isinstance(group["prior_width"], str) and group["prior_width"] == "auto",
            f"left at 'auto' with prior={self.name!r}: only 'movement' has a width",
        )

    def check_saved(self, index: int, entries: Sequence[State]) -> None:
        """Refuses the states of a saved group's tensors that were written under another prior."""

    def left_open(self) -> Mapping[str, tuple[str, str]]:
        """Options that the training sets if nobody else does: each with its meaning and with who may set it."""
        return {}

    def initial_state(self, like: Tensor, group: Group) -> dict[str, Tensor]:
        """What the prior adds to a tensor's state at first.

        Args:
            like: the tensor, in the state's dtype.
            group: its parameter group.
        """
        return {}

    def begin_(self, state: State, mean: Tensor) -> None:
        """Told before a tensor's first step: weights may have been loaded since the state was made."""

    def renew_before_move_(self, state: State, mean: Tensor, group: Group) -> None:
        """Learns, in place, from the Hessian of this step and from the mean before it."""

    def renew_after_move_(self, state: State, mean: Tensor, group: Group) -> None:
        """Learns, in place, from the mean after this step, which the next draw sees."""

    def delta(self, state: State, group: Group) -> Any:
        """δ, a scalar."""
        raise NotImplementedError

    def mean(self, state: State) -> Tensor | None:
        """m0; None is 0."""
        return None

    def width(self, group: Group) -> float | None:
        """w; None where it has none."""
        return None

    def set_width(self, group: dict[str, Any], share: float) -> None:
        """Sets w by the share of the training that is over, where it was left open."""


class FixedPrior(Prior):
    """N(0, 1/(λδ)), δ = weight_decay.

    Example:
        >>> FixedPrior().delta({}, {"weight_decay": 0.1})
        0.1
    """

    name = "fixed"
    pulls = True

    def delta(self, state: State, group: Group) -> Any:
        """δ = weight_decay."""
        return group["weight_decay"]
