"""A module's forward at sampled weights: the parameter is shadowed by mean + noise for its span."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from varlora.ivon.noise.places import Place


class Sampler(Protocol):
    """Who decides whether weights are sampled, and to what (`varlora.ivon.noise.NoiseController`)."""

    @property
    def sampling(self) -> bool:
        """Whether forwards compute at sampled weights now."""

    def shadow(self, places: Sequence[Place]) -> None:
        """Shadows each parameter by its sample."""


class Sample(torch.autograd.Function):
    """Other values in place of a parameter's, whose gradient is the parameter's; `record` sees it in the backward pass.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> Sample.apply(weight, torch.tensor([3.0, 4.0]), print).square().sum().backward()
        tensor([6., 8.])
        >>> weight.grad
        tensor([6., 8.])
    """

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, values: Tensor, record: Callable[[Tensor], None]) -> Tensor:
        ctx.record = record
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.record(gradient)
        return gradient, None, None


def uncompiled(function: Callable[..., Any], *, but_callees: bool = False) -> Callable[..., Any]:
    """Keeps torch.compile out of this function and, unless `but_callees`, out of what it calls."""
    return torch.compiler.disable(function, recursive=not but_callees)  # type: ignore[no-any-return,no-untyped-call]


class SampledForward:
    """A module's forward, at sampled weights while the controller is active.

    A wrapper with `finally` rather than a pair of hooks: hooks do not run on KeyboardInterrupt.
    """

    def __init__(self, controller: Sampler, scope: nn.Module, places: Sequence[Place]) -> None:
        functools.update_wrapper(self, scope.forward)
        self.forward = scope.forward
        self.replaced = scope.__dict__.get("forward")  # e.g. accelerate's autocast
        self.controller, self.scope, self.places = controller, scope, places

    def remove(self) -> None:
        """Gives the module its forward back, unless somebody has wrapped this one in the meantime."""
        if self.scope.__dict__.get("forward") is self:
            del self.scope.forward
            if self.replaced is not None:
                self.scope.forward = self.replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.controller.sampling:
            return self.forward(*args, **kwargs)
        try:
            self.controller.shadow(self.places)
            return self.forward(*args, **kwargs)
        finally:
            for place in self.places:
                place.holder.__dict__.pop(place.attribute, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module is not under control: it computes at its own weights."""
        copied = memo[id(self.scope)]
        return functools.partial(type(copied).forward, copied)

    __call__ = uncompiled(__call__, but_callees=True)
