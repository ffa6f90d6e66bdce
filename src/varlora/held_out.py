r"""Rows that steer λ: which they are, and what the model says about them under draws of its weights.

Validation rows, where there are some. Otherwise a tenth of the training rows, at most 256, is withheld: in the first
epochs other rows take their places, so that every epoch keeps its length, and after 60 % of the training they come
back and λ stays where it is.

A measurement predicts about 32 rows, the next ones each time, at two pairs of opposite draws and at the mean. It is
done so seldom that all of them cost about a tenth of the training; of a short one more, since a dozen are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from varlora.modes import evaluation_mode
from varlora.noise import NoiseController
from varlora.optim.ess_control import HeldOutRecord, calibration_slope, moments

HeldOutSource = Literal["auto", "validation", "train", "none"]

SHARE_WITHHELD = 0.1
MOST_ROWS = 256
FEWEST_ROWS = 30
"""Fewer say too little, and a small training set misses them most."""
BEGUN_AFTER = 0.2
"""Share of the training before the first measurement: what a model says while it learns the task's outline passes."""
RETURNED_AFTER = 0.6
"""Share of the training after which withheld rows come back."""
ROWS_PER_MEASUREMENT = 32
PAIRS = 2
CHUNK = 512
"""Answers whose softmax is taken at a time: a vocabulary is large."""
COST = 0.1
"""Of the training, in the currency of forward passes: a backward pass counts as two."""
FEWEST_MEASUREMENTS = 12
"""In a short training, whatever they cost."""

Logits = Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, Tensor]]
"""(model, batch) → logits (..., C) and labels (...), whose first dimension is the row; labels below 0 are none."""


def number_withheld(num_examples: int) -> int:
    """How many training rows are withheld; 0 where they would be too few to say anything.

    Example:
        >>> number_withheld(200), number_withheld(640), number_withheld(100_000)
        (0, 64, 256)
    """
    number = min(int(SHARE_WITHHELD * num_examples), MOST_ROWS)
    return number if number >= FEWEST_ROWS else 0


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
        """Predicts the first batch at the mean, so that rows that say nothing are known before the training.

        Raises:
            ValueError: the model does not give logits for the labels.
        """
        try:
            with evaluation_mode(model):
                self._answers(model, self.batches[0])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    @property
    def batch_rows(self) -> int:
        """Rows of the largest batch."""
        return max(_rows(batch) for batch in self.batches)

    @property
    def batches_per_measurement(self) -> int:
        """How many batches make up about 32 rows."""
        return min(len(self.batches), max(1, round(ROWS_PER_MEASUREMENT / self.batch_rows)))

    def interval(self, rows_per_step: int, steps: int) -> int:
        """Training steps between two measurements.

        Args:
            rows_per_step: rows that this process trains on in a step.
            steps: of the training while these rows are held out.
        """
        passes = (2 * PAIRS + 1) * self.batches_per_measurement * self.batch_rows
        return max(1, min(math.ceil(passes / (3 * rows_per_step * COST)), steps // FEWEST_MEASUREMENTS))

    @torch.no_grad()
    def measured(self, model: nn.Module, noise: NoiseController, record: HeldOutRecord) -> HeldOutRecord:
        """The record with one more measurement, of the next batches in turn.

        Args:
            model: the model under training, between two steps.
            noise: its noise.
            record: so far.
        """
        count = self.batches_per_measurement
        first = record.measurements * count
        batches = [self.batches[i % len(self.batches)] for i in range(first, first + count)]
        with evaluation_mode(model):
            at_mean, rows = self._moments(model, batches)
            draws = []
            for pair in range(PAIRS):
                for sign in (1.0, -1.0):
                    with noise.evaluation_draw(pair, sign=sign):
                        draws.append(self._moments(model, batches)[0])
        if not len(rows):
            return record.without_rows()
        moments_S3P = torch.stack(draws)
        slope, information = calibration_slope(moments_S3P)
        sampled = torch.logsumexp(moments_S3P[:, 0], dim=0) - math.log(len(draws))
        return record.with_rows(
            *(_by_row(value, rows) for value in (slope, information, sampled - at_mean[0], -sampled))
        )

    def num_rows(self) -> int:
        """All held-out rows."""
        return sum(_rows(batch) for batch in self.batches)

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
