"""What the optimizer's own work costs, beside torch's AdamW on tensors of the same shapes.

A cycle is all that the optimizer adds to a forward and backward pass: the draw of the noise, the sampled weights, what
is collected in the backward pass, and the step. The model does nothing but read its tensors: a cycle is the time of
forward, backward and step less that of forward and backward alone. Alternating rounds, medians with quartiles; the
ratio is of each round to fused AdamW's step in the same round. ivon-opt (GPL) is a peer where it is installed.

    python -m benchmarks.optimizer                # a table in Markdown
    python -m benchmarks.optimizer --json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _adamw(number: int, shape: tuple[int, int], **options: bool) -> Callable[[], float]:
    model = Tensors(number, shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, **options)

    def cycle() -> float:
        optimizer.zero_grad()
        model().backward()
        return _timed(optimizer.step)

    return cycle


def _cycle(
    optimizer: torch.optim.Optimizer, step: Callable[[], None], number: int, shape: tuple[int, int]
) -> Callable[[], float]:
    """Seconds of forward, backward and step, less those of forward and backward alone."""
    bare = Tensors(number, shape)

    def cycle() -> float:
        optimizer.zero_grad()
        bare.zero_grad()
        alone = _timed(lambda: bare().backward())
        return _timed(step) - alone

    return cycle


def _varlora(number: int, shape: tuple[int, int], recipe: Any) -> Callable[[], float]:
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

    return _cycle(optimizer, step, number, shape)


def _ivon_opt(number: int, shape: tuple[int, int]) -> Callable[[], float]:
    import ivon

    model = Tensors(number, shape)
    optimizer = ivon.IVON(model.parameters(), lr=LR, ess=ESS, hess_init=HESS_INIT)

    def step() -> None:
        with optimizer.sampled_params(train=True):
            model().backward()
        optimizer.step()

    return _cycle(optimizer, step, number, shape)


def measure(shapes: Sequence[str], *, rounds: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Quartiles by shape and optimizer: milliseconds of a cycle, and its ratio to fused AdamW's step."""
    found = {}
    for name in shapes:
        number, shape = SHAPES[name]
        cycles = {
            "AdamW, fused": _adamw(number, shape, fused=True),
            "AdamW, foreach": _adamw(number, shape, foreach=True),
            "IVON, by default": _varlora(number, shape, "auto"),
            "IVON, cong2025": _varlora(number, shape, "cong2025"),
        }
        if importlib.util.find_spec("ivon") is not None:
            cycles["ivon-opt"] = _ivon_opt(number, shape)
        for cycle in cycles.values():  # states are made
            cycle()
            cycle()
        seconds: dict[str, list[float]] = {optimizer: [] for optimizer in cycles}
        for _ in range(rounds):
            for optimizer, cycle in cycles.items():
                seconds[optimizer].append(cycle())
        fused = seconds["AdamW, fused"]
        found[name] = {
            optimizer: {
                "milliseconds": _quartiles([1e3 * one for one in each]),
                "ratio": _quartiles([one / floor for one, floor in zip(each, fused, strict=True)]),
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
    print("| tensors | optimizer | cycle, ms | to fused AdamW | quartiles |")
    print("| --- | --- | --- | --- | --- |")
    for name, optimizers in found.items():
        for optimizer, numbers in optimizers.items():
            low, ratio, high = numbers["ratio"]
            print(f"| {name} | {optimizer} | {numbers['milliseconds'][1]:.2f} | {ratio:.1f} | {low:.1f}–{high:.1f} |")
    print()
    print(", ".join(f"{name} {value}" for name, value in about.items()))


if __name__ == "__main__":
    main()
