"""What the optimizer's own work costs, beside torch's AdamW on tensors of the same shapes.

A cycle is all that the optimizer adds to a forward and backward pass: the draw of the noise, the sampled weights, what
is collected in the backward pass, and the step. The model does nothing but read its tensors: a cycle is the time of
forward, backward and step less that of forward and backward alone, in seconds of the process's CPU, so that others on
the machine disturb little. Alternating rounds, medians with quartiles; the ratio is of each round to fused AdamW's step
in the same round. ivon-opt (GPL) is a peer where it is installed.

Operations are what is dispatched in a cycle beyond forward and backward alone, views left out and a foreach call as
one: the kernels that a GPU would be told to launch (torch cuts a long foreach call into several). Bytes a parameter
are the most that is held at once in a cycle above the weights: state, gradients, samples, temporaries.

    python -m benchmarks.optimizer                # a table in Markdown
    python -m benchmarks.optimizer --json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.measuring import has_ivon_opt
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from varlora import IVON, IVONConfig, NoiseController

SHAPES: dict[str, tuple[int, tuple[int, int]]] = {
    "112 tensors, 2.3M": (112, (8, 2566)),
    "392 tensors, 24M": (392, (8, 7653)),
    "392 tensors of 8 × 8": (392, (8, 8)),
}
LR, ESS, HESS_INIT = 1e-4, 1e4, 1e-3


class Hand(torch.autograd.Function):
    """A loss that hands each tensor the same made-up gradient, at no cost."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *tensors: Tensor) -> Tensor:
        ctx.gradient, ctx.number = gradient, len(tensors)
        return torch.ones(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(ctx.gradient for _ in range(ctx.number)))


class Leaf(nn.Module):
    """A tensor that is read."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(shape))

    def forward(self) -> Tensor:
        return self.weight


class Tensors(nn.Module):
    """Tensors, and a loss of all of them."""

    def __init__(self, number: int, shape: tuple[int, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.leaves = nn.ModuleList(Leaf(shape) for _ in range(number))
        self.gradient = 0.01 * torch.randn(shape)

    def forward(self) -> Tensor:
        return Hand.apply(self.gradient, *(leaf() for leaf in self.leaves))  # type: ignore[no-any-return]


def _timed(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


class Operations(TorchDispatchMode):
    """Counts the operations within it that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not (
            func.is_view or func in (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default)
        )
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], Any]) -> int:
    """How many operations some work dispatches."""
    with Operations() as counted:
        work()
    return counted.number


def bytes_held(work: Callable[[], Any]) -> int:
    """The most that some work holds at once of what it has allocated on a CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    results = profile.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes, initial=0))


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """Forward, backward and step of one optimizer, beside forward and backward alone.

    Attributes:
        optimizer: whose.
        step: forward, backward and step.
        bare: the same tensors without an optimizer.
    """

    optimizer: torch.optim.Optimizer
    step: Callable[[], None]
    bare: Tensors

    def _alone(self) -> None:
        self.bare().backward()

    def _clear(self) -> None:
        self.optimizer.zero_grad()
        self.bare.zero_grad()

    def seconds(self) -> float:
        """CPU seconds of a cycle."""
        self._clear()
        alone = _timed(self._alone)
        return _timed(self.step) - alone

    def operations(self) -> int:
        """Operations of a cycle."""
        self._clear()
        return operations(self.step) - operations(self._alone)

    def bytes_per_parameter(self) -> float:
        """The most that is held in a cycle above the weights."""
        self._clear()
        state = sum(t.nbytes for state in self.optimizer.state.values() for t in state.values() if torch.is_tensor(t))
        return (state + bytes_held(self.step)) / sum(p.numel() for p in self.bare.parameters())


def _adamw(number: int, shape: tuple[int, int], **options: bool) -> Cycle:
    model = Tensors(number, shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, **options)

    def step() -> None:
        model().backward()
        optimizer.step()

    return Cycle(optimizer=optimizer, step=step, bare=Tensors(number, shape))


def _varlora(number: int, shape: tuple[int, int], recipe: Any) -> Cycle:
    model = Tensors(number, shape)
    options = {} if recipe == "auto" else {"hess_init": HESS_INIT}
    config = IVONConfig(recipe=recipe, lr=LR, ess=ESS, **options)
    optimizer = IVON(model.parameters(), **config.optimizer_kwargs())
    noise = NoiseController(model, optimizer, seed=0)

    def step() -> None:
        loss = model()
        noise.observe_loss(loss)
        loss.backward()
        optimizer.step()

    return Cycle(optimizer=optimizer, step=step, bare=Tensors(number, shape))


def _ivon_opt(number: int, shape: tuple[int, int]) -> Cycle:
    import ivon

    model = Tensors(number, shape)
    optimizer = ivon.IVON(model.parameters(), lr=LR, ess=ESS, hess_init=HESS_INIT)

    def step() -> None:
        with optimizer.sampled_params(train=True):
            model().backward()
        optimizer.step()

    return Cycle(optimizer=optimizer, step=step, bare=Tensors(number, shape))


def measure(shapes: Sequence[str], *, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """By shape and optimizer: quartiles of a cycle's milliseconds and ratio to fused AdamW's; operations and bytes."""
    found = {}
    for name in shapes:
        number, shape = SHAPES[name]
        cycles = {
            "AdamW, fused": _adamw(number, shape, fused=True),
            "AdamW, foreach": _adamw(number, shape, foreach=True),
            "IVON, by default": _varlora(number, shape, "auto"),
            "IVON, cong2025": _varlora(number, shape, "cong2025"),
        }
        if has_ivon_opt():
            cycles["ivon-opt"] = _ivon_opt(number, shape)
        for cycle in cycles.values():  # states are made
            cycle.seconds()
            cycle.seconds()
        seconds: dict[str, list[float]] = {optimizer: [] for optimizer in cycles}
        for _ in range(rounds):
            for optimizer, cycle in cycles.items():
                seconds[optimizer].append(cycle.seconds())
        fused = seconds["AdamW, fused"]
        found[name] = {
            optimizer: {
                "milliseconds": _quartiles([1e3 * one for one in each]),
                "ratio": _quartiles([one / floor for one, floor in zip(each, fused, strict=True)]),
                "operations": cycles[optimizer].operations(),
                "bytes_per_parameter": cycles[optimizer].bytes_per_parameter(),
            }
            for optimizer, each in seconds.items()
        }
    return found


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    found = measure(given.shapes, rounds=given.rounds)
    versions = {name: importlib.metadata.version(name) for name in ("varlora", "torch")}
    about = {
        "rounds": given.rounds,
        "threads": given.threads,
        "python": platform.python_version(),
        **versions,
        "cores": os.cpu_count(),
        "load": round(load, 1),
    }
    if given.json:
        print(json.dumps({"cycles": found, "about": about}, indent=2))
        return
    print("| tensors | optimizer | cycle, ms | to fused AdamW | quartiles | operations | bytes a parameter |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, optimizers in found.items():
        for optimizer, numbers in optimizers.items():
            low, ratio, high = numbers["ratio"]
            row = [name, optimizer, f"{numbers['milliseconds'][1]:.2f}", f"{ratio:.1f}", f"{low:.1f}–{high:.1f}"]
            row += [f"{numbers['operations']:,}", f"{numbers['bytes_per_parameter']:.1f}"]
            print(f"| {' | '.join(row)} |")
    print()
    print(", ".join(f"{name} {value}" for name, value in about.items()))


if __name__ == "__main__":
    main()
