"""Whether all of a tensor's gradient came through its samples.

A module reads the sample; a read elsewhere (a penalty on the weights, a layer that reads another layer's weight) sees
the mean, and its gradient arrives without noise: its curvature would be missing from noise · gradient. A hook on the
tensor sees each backward pass's whole gradient, before clipping and averaging, and whatever scales the loss scales both
sides. Where one sample is all that was read, the gradient is the very tensor that the sample's node handed on, so that
the comparison costs nothing.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


class Arrivals:
    """Compares, in every backward pass, a tensor's gradient with what its samples handed on.

    Args:
        parameter: a leaf that requires a gradient.

    Attributes:
        bypassed: a boolean scalar: whether other gradient has arrived since `forget`; None where nothing was compared.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> arrivals = Arrivals(weight)
        >>> weight.square().sum().backward()               # nothing of this was handed on by a sample
        >>> arrivals.bypassed
        tensor(True)
    """

    def __init__(self, parameter: Tensor) -> None:
        self._parameter = weakref.ref(parameter)
        self.bypassed: Tensor | None = None
        self._handed_on: dict[int, list[Tensor]] = {}  # by backward pass: one may run within another (checkpointing)
        self._handle = parameter.register_hook(self._arrived)  # type: ignore[no-untyped-call]
        hooks: Any = parameter._backward_hooks
        others = {key: hook for key, hook in hooks.items() if key != self._handle.id}
        for key, hook in others.items():  # behind ours: they may change the gradient
            del hooks[key]
            hooks[key] = hook

    def of(self, parameter: Tensor) -> bool:
        """Whether these are the arrivals at this very tensor."""
        return self._parameter() is parameter

    def hand_on(self, gradient: Tensor) -> None:
        """Called in the backward pass with the gradient that one sample hands on."""
        self._handed_on.setdefault(torch._C._current_graph_task_id(), []).append(gradient)

    def forget(self) -> None:
        """Begins anew; what a backward pass that broke off has left is dropped."""
        self.bypassed = None
        self._handed_on.clear()

    def remove(self) -> None:
        """Gives the tensor back without the hook."""
        self._handle.remove()
        self.forget()

    def _arrived(self, gradient: Tensor) -> None:
        handed_on = self._handed_on.pop(torch._C._current_graph_task_id(), [])
        if len(handed_on) == 1 and handed_on[0] is gradient:
            return
        with torch.no_grad():
            rest, size = gradient.detach().clone(), gradient.new_zeros(())
            for part in handed_on:
                rest -= part
                size += part.norm()
            rounding = 2 * len(handed_on) * torch.finfo(gradient.dtype).eps * size
            bypassed = rest.norm() > rounding  # False where either is not finite: that step is skipped
            self.bypassed = bypassed if self.bypassed is None else self.bypassed | bypassed
