"""Processes of one group for tests, forked from this one where that is safe: none imports the library anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState

RANKS = 2
START = "fork" if sys.platform == "linux" else "spawn"


def on_ranks(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Calls a module's function on two ranks of a gloo group.

    Args:
        function: called with the rank and `arguments`.
        folder: an empty one, for the group's store and the results.
        arguments: what else it takes.

    Returns:
        What it returned on each rank, which `torch.load` must take.
    """
    mp.start_processes(_call, (function, str(folder), arguments), nprocs=RANKS, start_method=START)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def forget_processes() -> None:
    """Makes transformers and accelerate ask anew which process this is; a forked one has its parent's answer."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _call(rank: int, function: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    forget_processes()
    torch.set_num_threads(1)
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(RANKS))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
