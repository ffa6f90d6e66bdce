r"""Rows that steer λ: which they are, and what the model says about them under draws of its weights.

Validation rows, where there are some. Otherwise a tenth of the training rows, at most 256, is withheld: in the first
epochs other rows take their places, so that every epoch keeps its length, and after 60 % of the training they come
back and λ stays where it is.

A measurement predicts 64 rows (all, where there are fewer), the next ones each time, at two pairs of opposite draws and
at the mean. Work is counted in rows, of which a training step passes each three times (a backward pass is two forward
passes), so that a resumed run and every rank decide alike. All measurements together take a tenth of the training's
work and no more, however short it is:

    rows to ask  R = (0.1 · 3 · rows per step · steps − rows of the check) / 5,
    24 measurements, or as many as R pays for, of at least 64 rows and more where R pays for more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from varlora.adapters.modes import evaluation_mode
from varlora.ivon.held_out_rows import moments, told_by
from varlora.ivon.noise import NoiseController
from varlora.posterior.held_out_record import HeldOutRecord

SHARE_WITHHELD = 0.1
MOST_ROWS = 256
FEWEST_HELD_OUT = 30
"""Fewer say too little, and a small training set misses them most."""
BEGUN_AFTER = 0.2
"""Share of the training before the first measurement: what a model says while it learns the task's outline passes."""
RETURNED_AFTER = 0.6
"""Share of the training after which withheld rows come back."""
ROWS_PER_MEASUREMENT = 64
"""At least, where there are so many and the budget pays for them."""
MOST_MEASUREMENTS = 24
ROWS_OF_CHECK = 8
PAIRS = 2
PASSES = 2 * PAIRS + 1
"""Of a row that is asked: the draws, and the mean."""
CHUNK = 512
"""Answers whose softmax is taken at a time: a vocabulary is large."""
COST = 0.1
"""Of the training's work, in forward passes of a row: a backward pass counts as two."""

Logits = Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, Tensor]]
"""(model, batch) → logits (..., C) and labels (...), whose first dimension is the row; labels below 0 are none."""


def number_withheld(num_examples: int) -> int:
    """How many training rows are withheld; 0 where they would be too few to say anything.

    Example:
        >>> number_withheld(200), number_withheld(640), number_withheld(100_000)
        (0, 64, 256)
    """
    number = min(int(SHARE_WITHHELD * num_examples), MOST_ROWS)
    return number if number >= FEWEST_HELD_OUT else 0


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
class Plan:
    """When held-out rows are asked.

    Attributes:
        steps: of the training, after which they are.
        rows: how many each time.
        affordable: rows that the budget pays for in all.
    """

    steps: tuple[int, ...]
    rows: int
    affordable: int


@dataclass(kw_only=True)
class HeldOut:
    """Held-out rows, ready to be predicted.

    Attributes:
        batches: the rows, collated; the same on every rank.
        logits: how the model's answer to a batch is read.
        source: "validation" or "train", for the record.
        readout: how `logits` reads an answer (`Readout.to_dict()`), where predictions will be read alike.
        until_epoch: the epoch after which these rows are trained on, so that they say nothing any more; None: never.

    Raises:
        ValueError: there is no batch, or something else than a mapping that holds tensors.
    """

    batches: Sequence[Mapping[str, Any]]
    logits: Logits
    source: str = "validation"
    readout: Mapping[str, Any] | None = None
    until_epoch: float | None = None

    def __post_init__(self) -> None:
        if not len(self.batches):
            raise ValueError("there are no held-out rows: HeldOut(batches=...) is empty. Give some, or leave it out.")
        batch: Any
        for batch in self.batches:
            if not isinstance(batch, Mapping):
                raise ValueError(
                    f"a batch of held-out rows must map names to tensors, but one is {type(batch).__name__}."
                )
            if not any(isinstance(value, Tensor) and value.ndim for value in batch.values()):
                raise ValueError(f"a batch of held-out rows holds no tensor, only {', '.join(map(str, batch))}.")

    @torch.no_grad()
    def check(self, model: nn.Module) -> None:
        """Predicts the first rows at the mean, so that rows that say nothing are known before the training.

        Raises:
            ValueError: the model does not give logits for the labels.
        """
        try:
            with evaluation_mode(model):
                for batch in self._next_rows(0, ROWS_OF_CHECK):
                    self._answers(model, batch)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def plan(self, rows_per_step: int, *, steps: int, begin: int, end: int) -> Plan:
        """When to ask, and how many rows each time, for a tenth of the training's work; see the module.

        Args:
            rows_per_step: rows that this process trains on in a step.
            steps: of the training.
            begin: the step after which rows may be asked.
            end: the last step after which they may be; the last measurement is there.

        Example:
            >>> rows = HeldOut(batches=[{"labels": torch.zeros(256)}], logits=lambda model, batch: batch)
            >>> rows.plan(16, steps=1000, begin=200, end=1000).steps[-2:]
            (942, 1000)
            >>> rows.plan(8, steps=80, begin=16, end=80)
            Plan(steps=(80,), rows=36, affordable=36)
        """
        checked = max(ROWS_OF_CHECK, self._largest_unit)
        affordable = max(int((COST * 3 * rows_per_step * steps - checked) / PASSES), 0)
        wanted = min(max(ROWS_PER_MEASUREMENT, affordable // MOST_MEASUREMENTS), self.num_rows())
        if FEWEST_HELD_OUT <= affordable < wanted:
            wanted = affordable
        rows = max(wanted // self._largest_unit, 1) * self._largest_unit
        count = max(min(MOST_MEASUREMENTS, affordable // rows, end - begin), 0)
        return Plan(
            steps=tuple(begin + (end - begin) * (k + 1) // count for k in range(count)),
            rows=rows,
            affordable=affordable,
        )

    @torch.no_grad()
    def measured(self, model: nn.Module, noise: NoiseController, record: HeldOutRecord, rows: int) -> HeldOutRecord:
        """The record with one more measurement, of the next rows in turn.

        Args:
            model: the model under training, between two steps.
            noise: its noise.
            record: so far.
            rows: how many; the same number every time.
        """
        batches = self._next_rows(record.measurements, rows)
        with evaluation_mode(model):
            at_mean, row_of = self._moments(model, batches)
            draws = []
            for pair in range(PAIRS):
                for sign in (1.0, -1.0):
                    with noise.evaluation_draw(pair, sign=sign):
                        draws.append(self._moments(model, batches)[0])
        if not len(row_of):
            return record.without_rows()
        told = told_by(at_mean, torch.stack(draws).view(PAIRS, 2, 3, -1))
        return record.with_rows(**{name: _by_row(value, row_of) for name, value in told.items()})

    def num_rows(self) -> int:
        """All held-out rows."""
        return sum(_rows(batch) for batch in self.batches)

    @cached_property
    def _units(self) -> list[tuple[int, int, int]]:
        """(batch, first row, last row + 1) of what can be taken by itself: a row, or a batch that cannot be cut."""
        units = []
        for index, batch in enumerate(self.batches):
            rows = _rows(batch)
            size = 1 if _can_be_cut(batch) else rows
            units += [(index, first, first + size) for first in range(0, rows, size)]
        return units

    @property
    def _largest_unit(self) -> int:
        return max(last - first for _, first, last in self._units)

    def _next_rows(self, measurement: int, rows: int) -> list[Mapping[str, Any]]:
        """About `rows` rows, from where the last measurement ended; rows of one batch stay together."""
        count = min(max(1, rows // self._largest_unit), len(self._units))
        parts: list[tuple[int, int, int]] = []
        for number in range(measurement * count, (measurement + 1) * count):
            index, first, last = self._units[number % len(self._units)]
            if parts and parts[-1][0] == index and parts[-1][2] == first:
                parts[-1] = (index, parts[-1][1], last)
            else:
                parts.append((index, first, last))
        return [_cut(self.batches[index], first, last) for index, first, last in parts]

    def _moments(self, model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """(3, P) moments of the P answers in the batches, and which row each belongs to."""
        found, rows, before = [], [], 0
        for batch in batches:
            logits, labels = self._answers(model, batch)
            known = labels >= 0
            answers, truth = logits[known], labels[known]
            for start in range(0, len(truth), CHUNK):
                found.append(moments(answers[start : start + CHUNK], truth[start : start + CHUNK]).cpu())
            rows.append(known.nonzero()[:, 0].cpu() + before)
            before += len(labels)
        return torch.cat([torch.zeros(3, 0, dtype=torch.float64), *found], dim=1), torch.cat(rows)

    def _answers(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (..., C) and labels (...) of one batch."""
        device = next(model.parameters()).device
        on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        logits, labels = self.logits(model, on_device)
        if logits.shape[:-1] != labels.shape or labels.is_floating_point() or not labels.ndim:
            raise ValueError(
                f"held-out rows need whole-numbered labels and logits of one dimension more, but the labels are "
                f"{labels.dtype} of shape {tuple(labels.shape)}, the logits of shape {tuple(logits.shape)}."
            )
        if labels.numel() and int(labels.max()) >= logits.shape[-1]:
            raise ValueError(f"a held-out row has label {int(labels.max())}, but there are {logits.shape[-1]} logits.")
        return logits, labels


def _by_row(values: Tensor, rows: Tensor) -> Tensor:
    """The mean over the answers of each row that has some."""
    total = torch.zeros(int(rows.max()) + 1, dtype=values.dtype).index_add_(0, rows, values)
    count = torch.bincount(rows)
    return total[count > 0] / count[count > 0]


def _rows(batch: Mapping[str, Any]) -> int:
    if isinstance(labels := batch.get("labels"), Tensor) and labels.ndim:
        return len(labels)
    return max(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim)


def _can_be_cut(batch: Mapping[str, Any]) -> bool:
    """Whether every value says which part of it is a row's: not the patches of images, nor the ends of packed rows."""
    rows = _rows(batch)
    for value in batch.values():
        if isinstance(value, Tensor):
            fits = not value.ndim or len(value) == rows
        elif isinstance(value, (list, tuple)):
            fits = len(value) == rows
        else:
            fits = value is None or isinstance(value, (str, int, float))
        if not fits:
            return False
    return True


def _cut(batch: Mapping[str, Any], first: int, last: int) -> Mapping[str, Any]:
    if (first, last) == (0, _rows(batch)):
        return batch
    return {
        name: value[first:last]
        if isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim)
        else value
        for name, value in batch.items()
    }
