"""A module's forward, replaced for the span of a block: what is not read is not computed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class ReplacedForward:
    """Stands in place of a module's forward, from `put` to `remove`.

    Args:
        module: whose forward it is. Copies of the module that are made meanwhile compute by themselves.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward: Callable[..., Any] = module.forward
        self._own = module.__dict__.get("forward")  # e.g. accelerate's, which brings a layer to its device

    def put(self) -> None:
        """Takes the place."""
        self.module.forward = self

    def remove(self) -> None:
        """Gives the module its forward back."""
        self.module.__dict__.pop("forward", None)
        if self._own is not None:
            self.module.forward = self._own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self.module)]
        return functools.partial(type(copied).forward, copied)


class AtPositions(ReplacedForward):
    """Computes some positions of a batch alone, and gives zeros elsewhere: for a module that takes each by itself.

    Args:
        module: takes hidden states (B, T, H), each position by itself, as a decoder layer's MLP does.
        positions: gives their places in a batch of B × T positions (N,), each once, from (B, T); None: all.

    Example:
        >>> import torch
        >>> linear, hidden = nn.Linear(2, 2), torch.ones(1, 3, 2)
        >>> replaced = AtPositions(linear, lambda shape: torch.tensor([1]))
        >>> replaced.put()
        >>> linear(hidden)[0].abs().sum(1).gt(0).tolist()
        [False, True, False]
        >>> replaced.remove()
        >>> linear(hidden)[0].abs().sum(1).gt(0).tolist()
        [True, True, True]
    """

    def __init__(self, module: nn.Module, positions: Callable[[tuple[int, ...]], Tensor | None]) -> None:
        super().__init__(module)
        self.positions = positions

    def __call__(self, hidden: Tensor) -> Tensor:
        """The module's output (B, T, H)."""
        at = self.positions(tuple(hidden.shape[:-1]))
        if at is None:
            output: Tensor = self.forward(hidden)
            return output
        at = at.to(hidden.device)
        some: Tensor = self.forward(hidden.flatten(0, -2).index_select(0, at))
        every = some.new_zeros(hidden.shape[:-1].numel(), some.shape[-1])
        return every.index_copy(0, at, some).view(*hidden.shape[:-1], -1)
