"""Frozen linear layers whose backward pass multiplies the positions that have a gradient, and no others.

Above the last layer a row is read at one position, and padding is read nowhere: the gradients of a layer's outputs are
exactly 0 at the other positions, and so are those of its inputs, whatever the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlora.readout.replaced_forward import ReplacedForward

_SMALLEST = 64
"""Sides of a layer from which a look at its gradients costs less than multiplying them may."""
_MOST = 0.75
"""Share of the positions from which copying them saves nothing."""


@contextmanager
def sparse_backward(model: nn.Module) -> Iterator[None]:
    """Within the block the frozen layers of a model compute gradients of their inputs where there are any.

    Layers with a forward of their own (offloaded, quantised, narrowed) keep it, and so does the output layer, which a
    readout narrows.

    Example:
        >>> layer = nn.Linear(64, 64).requires_grad_(False)
        >>> x = torch.ones(3, 64, requires_grad=True)
        >>> with sparse_backward(layer):
        ...     layer(x)[1].sum().backward()
        >>> x.grad.abs().sum(1).gt(0).tolist()
        [False, True, False]
    """
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    replaced = [
        _SparseBackward(module)
        for module in model.modules()
        if type(module) is nn.Linear
        and module is not output
        and "forward" not in module.__dict__
        and min(module.weight.shape) >= _SMALLEST
        and not any(p.requires_grad for p in module.parameters())
    ]
    try:
        for one in replaced:
            one.put()
        yield
    finally:
        for one in replaced:
            one.remove()


def nonzero_rows(matrix: Tensor) -> Tensor | None:
    """Which rows of a matrix (n, d) are not all 0, as indices; None where copying them would save nothing.

    Example:
        >>> nonzero_rows(torch.eye(100, 64)).numel(), nonzero_rows(torch.ones(100, 64))
        (64, None)
    """
    if matrix.shape[1] < _SMALLEST:
        return None
    some = matrix.abs().amax(1) != 0
    return some.nonzero()[:, 0] if int(some.sum()) < _MOST * len(matrix) else None


class _SparseBackward(ReplacedForward):
    def __call__(self, input: Tensor) -> Tensor:
        if not (input.requires_grad and torch.is_grad_enabled()):
            return self.forward(input)  # type: ignore[no-any-return]
        return _Linear.apply(input, self.module.weight, self.module.bias)  # type: ignore[no-any-return, no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        flat, weight = gradient.reshape(-1, gradient.shape[-1]), weight.to(gradient.dtype)
        at = nonzero_rows(flat)
        if at is None:
            of_inputs = flat @ weight
        else:
            of_inputs = flat.new_zeros(len(flat), weight.shape[1]).index_copy_(0, at, flat[at] @ weight)
        return of_inputs.reshape(*gradient.shape[:-1], -1), None, None
