"""Training rows that are withheld to steer λ: other rows take their places in the first epochs, then they come back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, RandomSampler, Sampler

SHARE_WITHHELD = 0.1
MOST_ROWS = 256
FEWEST_WITHHELD = 30
"""Fewer say too little, and a small training set misses them most."""
RETURNED_AFTER = 0.6
"""Share of the training after which withheld rows come back."""


def number_withheld(num_examples: int) -> int:
    """How many training rows are withheld; 0 where they would be too few to say anything.

    Example:
        >>> number_withheld(200), number_withheld(640), number_withheld(100_000)
        (0, 64, 256)
    """
    number = min(int(SHARE_WITHHELD * num_examples), MOST_ROWS)
    return number if number >= FEWEST_WITHHELD else 0


def withheld_rows(num_examples: int, seed: int) -> list[int]:
    """Which training rows are withheld, in increasing order.

    Example:
        >>> len(withheld_rows(640, seed=0)), withheld_rows(640, seed=0) == withheld_rows(640, seed=1)
        (64, False)
    """
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))
    return sorted(order[: number_withheld(num_examples)].tolist())


class WithholdingSampler(Sampler[int]):
    """A new random order each epoch, in which withheld rows are replaced until they come back.

    Args:
        data: the training rows.
        withheld: which of them.
        epochs_withheld: in how many epochs, from the first.
        seed: of the orders.

    Raises:
        ValueError: more rows are withheld than are left to take their places.

    Example:
        >>> sampler = WithholdingSampler(range(4), withheld=[3], epochs_withheld=1, seed=0)
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> len(first), 3 in first, sorted(sampler)
        (4, False, [0, 1, 2, 3])
    """

    def __init__(self, data: Sized, *, withheld: Sequence[int], epochs_withheld: int, seed: int) -> None:
        self.number = len(data)
        self.withheld = frozenset(withheld)
        self.kept = [row for row in range(self.number) if row not in self.withheld]
        if len(self.withheld) > len(self.kept):
            raise ValueError(f"{len(self.withheld)} of {self.number} rows are withheld; at most half of them can be.")
        self.epochs_withheld = epochs_withheld
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order is given next; a resumed run chooses the one it was in."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.number, generator=generator).tolist()
        if self.epoch < self.epochs_withheld:
            others = iter(torch.randperm(len(self.kept), generator=generator).tolist())
            order = [self.kept[next(others)] if row in self.withheld else row for row in order]
        yield from order


@dataclass(frozen=True, kw_only=True)
class Withheld:
    """Training rows that are withheld at first.

    Attributes:
        rows: their indices.
        epochs: in how many epochs, from the first.
    """

    rows: Sequence[int]
    epochs: int


def withheld_of(data: Any, epochs: float, seed: int) -> Withheld | None:
    """The training rows to withhold; None where there are too few, or they have no order.

    Args:
        data: the training set.
        epochs: how often training passes over it.
        seed: which rows.

    Example:
        >>> withheld = withheld_of(list(range(640)), epochs=5, seed=0)
        >>> len(withheld.rows), withheld.epochs
        (64, 3)
    """
    if not isinstance(data, Sized) or isinstance(data, IterableDataset):
        return None
    rows = withheld_rows(len(data), seed)
    return Withheld(rows=rows, epochs=max(1, round(RETURNED_AFTER * epochs))) if rows else None


def withholding(sampler: Any, data: Any, withheld: Withheld, seed: int) -> WithholdingSampler:
    """A sampler that withholds rows, in place of the trainer's own.

    Raises:
        ValueError: the trainer's is not in random order.
    """
    if not isinstance(sampler, RandomSampler):
        raise ValueError(f"rows can be withheld from a random order only, and the sampler is {type(sampler).__name__}.")
    return WithholdingSampler(data, withheld=withheld.rows, epochs_withheld=withheld.epochs, seed=seed)
