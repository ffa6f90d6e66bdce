"""What benchmarks have in common: ways that take turns, quartiles, exponents, tables, and the machine they ran on."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch


class Quartiles(NamedTuple):
    """Of repeated measurements."""

    low: float
    median: float
    high: float

    def __format__(self, spec: str) -> str:
        low, median, high = (format(value, spec) for value in self)
        return f"{median} ({low}–{high})"

    def __str__(self) -> str:
        return format(self, ".2f")


def quartiles(values: Sequence[float]) -> Quartiles:
    """Of one value or more."""
    return (
        Quartiles(*[values[0]] * 3)
        if len(values) == 1
        else Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))
    )


def processor_seconds(way: Callable[[], object]) -> float:
    """What a way takes of this process's time."""
    start = time.process_time()
    way()
    return time.process_time() - start


def take_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds_of: Callable[[Callable[[], object]], float] = processor_seconds,
) -> dict[str, list[float]]:
    """Seconds of each way in each of some rounds; one round before them is not counted.

    Args:
        ways: by name.
        rounds: in each of which all ways take turns.
        seconds_of: how long a way takes; processor seconds, unless given.
    """
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(seconds_of(way))
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], to: str) -> dict[str, Quartiles]:
    """Each way's time over another's of the same round."""
    floor = seconds[to]
    return {
        name: quartiles([one / base for one, base in zip(each, floor, strict=True)]) for name, each in seconds.items()
    }


def has_ivon_opt() -> bool:
    """Whether the peer is installed; a folder of the name `ivon` is not."""
    return any(True for _ in importlib.metadata.distributions(name="ivon-opt"))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size by least squares: 1 where cost is proportional to size."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(x, y).slope


def parser_of(what: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser of the options that all share."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="in which all ways take turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON in place of Markdown")
    return parser


def show(tables: Mapping[str, Sequence[Mapping[str, Any]]], given: argparse.Namespace, **more: Any) -> None:
    """Prints tables by title, each a row of cells by column, and how they were measured; `more` stands there, too."""
    packages = ("varlora", "torch", "transformers", "peft")
    about = {
        **more,
        "rounds": given.rounds,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    if given.json:
        print(json.dumps({"tables": tables, "about": about}, indent=2, ensure_ascii=False))
        return
    for title, rows in tables.items():
        print(f"{title}\n")
        print(f"| {' | '.join(rows[0])} |")
        print(f"|{' --- |' * len(rows[0])}")
        for row in rows:
            print(f"| {' | '.join(map(_cell, row.values()))} |")
        print()
    print(", ".join(f"{name} {value}" for name, value in about.items()))


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
