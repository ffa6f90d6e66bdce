"""The lower layers of a model left out where what they would give is known already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from varlora.adapters.modes import evaluation_mode
from varlora.readout.replaced_forward import ReplacedForward
from varlora.readout.trunks import BRANCHES, Trunk, call_of


class LowerLayers:
    """Gives one layer of a trunk its input, in place of the layers below, which compute nothing.

    The numbers are those of the whole model: only where they come from differs. In calls that ask for keys and values
    of every layer (generation) the layers below compute.

    Args:
        trunk: the model's.
        first: index of the layer, above 0.
    """

    by_row: ClassVar[bool] = False
    """Whether a row's states are known by its tokens; the trunk is then told of rows of several texts (`BRANCHES`)."""

    def __init__(self, trunk: Trunk, first: int) -> None:
        self.trunk = trunk
        self.number = first
        self.first = trunk.layers[first]
        self.batch: Tensor | None = None
        self.computing = False
        self.whole = False

    def states(self, given: Mapping[str, Any]) -> Tensor:
        """What enters the layer (B, T, H) in a call of the trunk's module.

        Args:
            given: what it is called with, by name.
        """
        raise NotImplementedError

    def begin(self, given: Mapping[str, Any]) -> None:
        """Is told of a call that asks for keys and values of every layer, before it."""

    def run(self, below: ReplacedForward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What something below returns where it is to compute."""
        return below.forward(*args, **kwargs)

    @property
    def is_off(self) -> bool:
        """Whether the lower layers are to compute."""
        return self.computing or self.whole

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Within the block the lower layers compute only where `compute` asks them to."""
        parts = [_Nothing(self, part) for part in (self.trunk.embeddings, *self.trunk.layers[: self.number])]
        hooks = [
            self.trunk.module.register_forward_pre_hook(self._before_trunk, with_kwargs=True),
            self.trunk.module.register_forward_hook(self._after_trunk, always_call=True),
            self.first.register_forward_pre_hook(self._before_first),
        ]
        try:
            for part in parts:
                part.put()
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for part in parts:
                part.remove()

    @torch.no_grad()
    def compute(self, inputs: Mapping[str, Any]) -> Tensor:
        """What enters the layer (B, T, H), by the lower layers in evaluation mode.

        Args:
            inputs: of the trunk's module.
        """
        self.computing = True
        hook = self.first.register_forward_pre_hook(_stop)
        try:
            with evaluation_mode(self.trunk.module):
                self.trunk.module(**{**inputs, **self.trunk.fixed})
        except _Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
            self.computing = False
        raise AssertionError("the model's forward did not reach the layer")

    def _before_trunk(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.computing or module is not self.trunk.module:
            return None
        given = call_of(module, args, kwargs)
        self.whole = self.trunk.is_whole(given)
        if self.whole:
            self.begin(given)
            return None
        self.batch = self.states(given)
        fixed = {name: value for name, value in self.trunk.fixed.items() if given.get(name) is None}
        return args, {name: value for name, value in {**kwargs, **fixed}.items() if name != BRANCHES}

    def _after_trunk(self, module: nn.Module, *_: Any) -> None:
        if not self.computing and module is self.trunk.module:
            self.whole = False

    def _before_first(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.is_off or module is not self.first:
            return None
        assert self.batch is not None
        if getattr(module, "gradient_checkpointing", False) and torch.is_grad_enabled():
            self.batch.requires_grad_()  # reentrant checkpointing computes no gradient where no input has one
        return (self.batch, *args[1:])

    def __deepcopy__(self, memo: dict[int, Any]) -> LowerLayers:
        """A copy of the model keeps the hooks, which do nothing in it."""
        return self


def lower_layers_of(trunk: Trunk) -> LowerLayers | None:
    """What leaves the trunk's lower layers out, within a block of `LowerLayers.left_out`."""
    forward = trunk.embeddings.__dict__.get("forward")
    return forward.lower if isinstance(forward, _Nothing) else None


class _Reached(Exception):
    """What enters the layer."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class _Nothing(ReplacedForward):
    """A forward of something below: it computes nothing, and returns zeros of the shape that it would return."""

    def __init__(self, lower: LowerLayers, module: nn.Module) -> None:
        super().__init__(module)
        self.lower = lower
        self.width = 0
        self.rest: tuple[Any, ...] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.lower.is_off:
            output = self.lower.run(self, args, kwargs)
            hidden, self.rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
            self.width = hidden.shape[-1]
            return output
        batch = self.lower.batch
        assert batch is not None
        zeros = batch.new_zeros(1).expand(*batch.shape[:-1], self.width)
        return zeros if self.rest is None else (zeros, *self.rest)


def _stop(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _Reached(args[0])
