"""The training losses of a step, as its backward passes weigh them.

A loss counts with the weight that its backward pass gives it (the gradient that arrives there), which is its share of
the step: 1/k under accumulation over k micro-batches. Of each backward pass it is what was shown by hand, else what the
model returned as `output.loss` or `output.log_probs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class StepLosses:
    """The losses of a step, each times its share; empty where none was seen.

    Example:
        >>> import torch
        >>> losses, weight = StepLosses(), torch.ones((), requires_grad=True)
        >>> for _ in range(2):                       # two micro-batches
        ...     loss = 3 * weight
        ...     losses.show(loss)
        ...     (loss / 2).backward()
        >>> losses.total()
        3.0
    """

    def __init__(self) -> None:
        self._seen: list[Tensor] = []
        # Of the backward pass that is under way: those shown by hand, and what the model returned.
        self._of_pass: dict[str, list[Tensor]] = {"shown": [], "loss": [], "log_probs": []}

    def __bool__(self) -> bool:
        return bool(self._seen)

    def total(self) -> float:
        """Their sum; of losses that are scaled, as they are scaled."""
        return math.fsum(map(float, self._seen))

    def show(self, loss: Tensor) -> None:
        """Notes a loss from which a backward pass will go; it goes before what the model returned."""
        self._note(loss, "shown")

    def look_at(self, output: Any) -> None:
        """Notes what a model returned, where a backward pass can go through it."""
        for name in ("loss", "log_probs"):
            returned = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
            if isinstance(returned, Tensor) and returned.requires_grad:
                self._note(returned, name)

    def clear(self) -> None:
        """Forgets those of the step."""
        self._seen.clear()
        self._clear_pass()

    def _note(self, loss: Tensor, kind: str) -> None:
        """Notes the loss, or the sum of its parts, times its share, which is the gradient that arrives at it."""
        value = loss.detach().to(torch.promote_types(loss.dtype, torch.float32), copy=True)

        def note(share: Tensor) -> None:
            self._of_pass[kind].append((share.detach().to(value.dtype) * value).sum())
            torch.autograd.Variable._execution_engine.queue_callback(self._end_pass)

        loss.register_hook(note)  # type: ignore[no-untyped-call]

    def _end_pass(self) -> None:
        """Keeps the losses that a backward pass has gone through, and none of them twice."""
        self._seen += next((losses for losses in self._of_pass.values() if losses), [])
        self._clear_pass()

    def _clear_pass(self) -> None:
        for losses in self._of_pass.values():
            losses.clear()
