"""Tensors some at a time: on a CPU so few that what one pass has written is in the cache for the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def blocks(things: Sequence[T], sizes: Sequence[int], device: torch.device, largest: int) -> Iterator[list[T]]:
    """Cuts a sequence into runs of at most so many entries, and at least one thing; on a GPU into one run.

    Args:
        things: whatever has entries on one device.
        sizes: their numbers of entries.
        device: where they are.
        largest: entries of a run.

    Example:
        >>> list(blocks("abc", [3, 1, 9], torch.device("cpu"), largest=4))
        [['a', 'b'], ['c']]
    """
    block: list[T] = []
    entries = 0
    for thing, size in zip(things, sizes, strict=True):
        if block and device.type == "cpu" and entries + size > largest:
            yield block
            block, entries = [], 0
        block.append(thing)
        entries += size
    if block:
        yield block
