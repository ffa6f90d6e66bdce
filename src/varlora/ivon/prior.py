"""A prior of IVON's, per tensor: what of it the state holds, how a step renews it, and the δ it gives.

    fixed       N(0, 1/(λδ)), δ = weight_decay                     (`FixedPrior`)
    adaptive    N(0, s²), s² in closed form                        δ = 1/(λ s²)       (`ivon.adaptive_prior`)

By name: `ivon.priors`. A prior keeps nothing itself: its options are the parameter group's, and what it has learned is
the tensor's state, so that a checkpoint of the optimizer holds both. Options are checked without waiting for torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from varlora.ivon.numbers import number_of

if TYPE_CHECKING:
    from torch import Tensor

Group = Mapping[str, Any]
"""A parameter group of IVON."""
State = Mapping[str, Any]
"""A tensor's state."""


class Prior:
    """The prior of a tensor; subclasses say which."""

    name: ClassVar[str]
    pulls: ClassVar[bool] = False
    """Whether δ m is part of the mean's step."""

    def initial_state(self, like: Tensor, group: Group) -> dict[str, Tensor]:
        """What the prior adds to a tensor's state at first.

        Args:
            like: the tensor, in the state's dtype.
            group: its parameter group.
        """
        return {}

    def renew_(self, states: Sequence[State], means: Sequence[Tensor], group: Group) -> None:
        """Learns, in place, from the Hessians of this step and from the means before it.

        Args:
            states: of tensors on one device, which share a parameter group.
            means: m of each.
            group: theirs.
        """

    def deltas(self, states: Sequence[State], group: Group) -> list[float]:
        """δ of each tensor."""
        raise NotImplementedError

    def lowest(self, deltas: Sequence[float], group: Group) -> list[float] | None:
        """How low the entries of h may be for h + δ to be positive, of each tensor; None: as low as they are.

        Args:
            deltas: δ of each tensor.
            group: theirs.
        """
        return None

    def curvature(self, hessian: Tensor, delta: float, group: Group) -> Tensor:
        """h + δ of a tensor, positive."""
        lowest = self.lowest([delta], group)
        return (hessian if lowest is None else hessian.clamp(min=lowest[0])) + delta


class FixedPrior(Prior):
    """N(0, 1/(λδ)), δ = weight_decay.

    Example:
        >>> FixedPrior().deltas([{}], {"weight_decay": 0.1})
        [0.1]
    """

    name = "fixed"
    pulls = True

    def deltas(self, states: Sequence[State], group: Group) -> list[float]:
        """δ = weight_decay."""
        return [number_of(group["weight_decay"])] * len(states)
