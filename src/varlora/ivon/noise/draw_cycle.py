"""The life of a draw, whatever is random: when it begins, which forwards see it, and when it is used up.

- A draw begins at the first training forward of the model after a backward pass has used the last one, or in another
  step of the optimizer. So one draw belongs to one forward-and-backward pass, and under accumulation each micro-batch
  has its own.
- It is seen by what runs in training mode from there on, until the step is over, and by what a backward pass
  recomputes (gradient checkpointing). A forward of the model in evaluation mode, or without gradients, is at the mean,
  and the draw goes on after it.
- Its noise is a function of (seed, step, draw, rank, names), never of a global generator, so that a resumed run draws
  what the uninterrupted run would have drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from varlora.adapters import unwrapped_model
from varlora.ivon.noise.source import CounterNoise, NoiseSource


@dataclass(frozen=True)
class Draw:
    """The noise of one forward-and-backward pass.

    Attributes:
        source: standard-normal noise.
        step: the optimizer step, from 0.
        index: the draw within the step, from 0.
        rank: the data-parallel rank.
    """

    source: NoiseSource
    step: int
    index: int
    rank: int

    def normals(self, likes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Standard-normal noise by name, in the shapes, dtypes and devices of `likes`."""
        return self.source.draw(likes, step=self.step, draw=self.index, rank=self.rank)

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard-normal noise in the shape, dtype and device of `like`."""
        return self.normals({name: like})[name]

    def signs(self, name: str, like: Tensor) -> Tensor:
        """Fair signs ±1 in the shape, dtype and device of `like`."""
        return 1 - 2 * (self.normal(name, like) < 0).to(like.dtype)


class CountsSteps(Protocol):
    """An optimizer that counts its steps, as part of its state."""

    @property
    def step_index(self) -> int:
        """How many steps were taken; the noise of a step is keyed by it."""


class DrawCycle:
    """Draws anew for every training forward and backward pass of a model, until `detach`.

    Subclasses say what is random, by `draw` while they are `sampling`, and call `mark_used` from the backward pass.

    Args:
        model: its top-level forward in training mode starts a draw; wrappers around it are taken off.
        source: the noise; None means `CounterNoise(seed)`.
        seed: the seed of the default source.
        rank: the data-parallel rank; None asks torch.distributed.
        optimizer: whose steps are counted; None: there is but one step, 0.

    Attributes:
        draw: the present draw; None before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        source: NoiseSource | None = None,
        seed: int = 0,
        rank: int | None = None,
        optimizer: CountsSteps | None = None,
    ) -> None:
        self.model = unwrapped_model(model)
        self.source = source if source is not None else CounterNoise(seed)
        self.rank = rank if rank is not None else (dist.get_rank() if dist.is_initialized() else 0)
        self.counter = optimizer
        self.draw: Draw | None = None
        self._used = True  # whether a backward pass has used the present draw
        self._active = False  # whether forwards, and their recomputation, see it
        self._before_inference: bool | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self) -> None:
        """Begins to watch the model's forwards."""
        self._hooks = [
            self.model.register_forward_pre_hook(self._before_forward),
            self.model.register_forward_hook(self._after_forward, always_call=True),
        ]

    def detach(self) -> None:
        """Leaves the model alone; what was drawn is forgotten."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._active = False

    @property
    def step(self) -> int:
        """The optimizer's present step."""
        return self.counter.step_index if self.counter is not None else 0

    @property
    def sampling(self) -> bool:
        """Whether a module is random now: in training mode, or recomputed in a backward pass."""
        return self._active and self._of_this_step and (self.model.training or torch._C._current_graph_task_id() != -1)

    @property
    def waiting(self) -> bool:
        """Whether a draw of this step has not been used by a backward pass yet."""
        return not self._used and self._of_this_step

    def begin(self, draw: Draw) -> None:
        """Told of a draw before it begins."""

    def goes_on(self) -> bool:
        """Whether the step that the last draw was of goes on, so that the next one is another of it."""
        return True

    def mark_used(self) -> None:
        """Called in the backward pass."""
        self._used = True

    def rest(self) -> None:
        """No forward sees a draw until the next one begins, or the present one goes on."""
        self._active = False

    @property
    def _of_this_step(self) -> bool:
        return self.draw is not None and self.draw.step == self.step

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if module is not self.model:  # a copy of it
            return
        if not (self.model.training and torch.is_grad_enabled()):
            self._before_inference, self._active = self._active, False
            return
        if self._used or not self._of_this_step:
            index = self.draw.index + 1 if self.draw is not None and self._of_this_step and self.goes_on() else 0
            draw = Draw(self.source, self.step, index, self.rank)
            self.begin(draw)
            self.draw, self._used = draw, False
        self._active, self._before_inference = True, None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self.model and self._before_inference is not None:
            self._active, self._before_inference = self._before_inference, None
