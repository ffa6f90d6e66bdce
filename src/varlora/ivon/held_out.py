"""Rows that steer λ, ready to be predicted, and what the model says about them under draws of its weights.

A measurement takes the next rows in turn, as many as it is asked for, cut out of whatever batches there are, and
predicts them at the mean and at two pairs of opposite draws: as rows of one forward, which share the layers that no
draw changes, where the model lets them (`varlora.posterior.batched_draws`), else one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from varlora.adapters.modes import evaluation_mode
from varlora.adapters.tensors import live_tensors
from varlora.ivon.calibration_slope import moments, told_by
from varlora.ivon.measuring import PAIRS, ROWS_OF_CHECK, Plan, measuring_plan
from varlora.ivon.noise import NoiseController
from varlora.posterior import PointMass
from varlora.posterior.batched_draws import drawn_as_rows
from varlora.posterior.held_out_record import HeldOutRecord
from varlora.posterior.sharded import local
from varlora.readout.batch_rows import is_by_rows, num_rows, take_rows

CHUNK = 512
"""Answers whose softmax is taken at a time: a vocabulary is large."""

DRAWS = [(pair, sign) for pair in range(PAIRS) for sign in (1.0, -1.0)]
"""Index and sign of the draws that are asked."""

Logits = Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, Tensor]]
"""(model, batch) → logits (..., C) and labels (...), whose first dimension is the row; labels below 0 are none."""


@dataclass(kw_only=True)
class HeldOut:
    """Held-out rows, ready to be predicted.

    Attributes:
        batches: the rows, collated; the same on every rank.
        logits: how the model's answer to a batch is read.
        source: "validation" or "train", for the record.
        readout: how `logits` reads an answer (`Readout.to_dict()`), where predictions will be read alike.
        until_step: the step after which these rows are trained on, so that they say nothing any more; None: never.
        label_names: what the labels are called, for the check that some row has one.
        length: tokens of one of these rows, in those of a training row, by which asking it costs more or less.

    Raises:
        ValueError: there is no batch, or something else than a mapping that holds tensors.
    """

    batches: Sequence[Mapping[str, Any]]
    logits: Logits
    source: str = "validation"
    readout: Mapping[str, Any] | None = None
    until_step: int | None = None
    label_names: Sequence[str] = ("labels",)
    length: float = 1.0

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
            ValueError: no row has a label, or the model does not give logits for them.
        """
        labels = [
            batch[name] for batch in self.batches for name in self.label_names if isinstance(batch.get(name), Tensor)
        ]
        if len(labels) >= len(self.batches) and not any(bool((of_batch >= 0).any()) for of_batch in labels):
            raise ValueError(f"none of the {self.num_rows()} rows has a label: all are below 0")
        try:
            with evaluation_mode(model):
                for batch in self._next_rows(0, ROWS_OF_CHECK):
                    self._answers(model, batch)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def plan(self, work: float, *, steps: int, begin: int, end: int) -> Plan:
        """When these rows are asked, and how many each time (`measuring_plan`)."""
        unit, length = self._largest_unit, self.length
        return measuring_plan(self.num_rows(), work=work, steps=steps, begin=begin, end=end, unit=unit, length=length)

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
            passes = self._as_rows(model, noise, batches) or self._in_turn(model, noise, batches)
        answers = torch.stack([torch.cat(of_pass) for of_pass in passes])  # (1 + 2 pairs, P, 4)
        most = max(map(num_rows, batches))
        row_of = torch.cat([found[:, 3].long() + number * most for number, found in enumerate(passes[0])])
        if not len(row_of):
            return record.without_rows()
        at_mean, draws = answers[0, :, :3].T, answers[1:, :, :3].mT
        told = told_by(at_mean, draws.reshape(PAIRS, 2, 3, -1))
        return record.with_rows(**{name: _by_row(value, row_of) for name, value in told.items()})

    def _as_rows(
        self, model: nn.Module, noise: NoiseController, batches: Sequence[Mapping[str, Any]]
    ) -> list[list[Tensor]] | None:
        """The moments of every batch at the mean and at every draw, as rows; None where they cannot be."""
        mean = {key: tensor.detach() for key, tensor in live_tensors(model).items() if tensor.requires_grad}
        if any(local(tensor) is not tensor for tensor in mean.values()):
            return None  # FSDP's shards are no rows' weights

        def weights() -> Iterator[Mapping[str, Tensor]]:
            yield mean
            live = live_tensors(model)
            for pair, sign in DRAWS:
                drawn = noise.evaluation_weights(pair, sign=sign)
                yield {key: drawn.get(live[key], tensor) for key, tensor in mean.items()}

        with noise.own_forwards():
            return drawn_as_rows(
                model,
                PointMass(mean=mean),
                weights(),
                batches,
                lambda batch: self._moments(model, batch),
                what="held-out rows",
                compare=lambda batch: self._answers(model, batch)[0],
            )

    def _in_turn(
        self, model: nn.Module, noise: NoiseController, batches: Sequence[Mapping[str, Any]]
    ) -> list[list[Tensor]]:
        """The same, one after another."""
        passes = [[self._moments(model, batch) for batch in batches]]
        for pair, sign in DRAWS:
            with noise.evaluation_draw(pair, sign=sign):
                passes.append([self._moments(model, batch) for batch in batches])
        return passes

    def num_rows(self) -> int:
        """All held-out rows."""
        return sum(map(num_rows, self.batches))

    @cached_property
    def _units(self) -> list[tuple[int, int, int]]:
        """(batch, first row, last row + 1) of what can be taken by itself: a row, or a batch that cannot be cut."""
        units = []
        for index, batch in enumerate(self.batches):
            rows = num_rows(batch)
            size = 1 if is_by_rows(batch) else rows
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
        return [self._part(index, first, last) for index, first, last in parts]

    def _part(self, index: int, first: int, last: int) -> Mapping[str, Any]:
        batch = self.batches[index]
        return batch if (first, last) == (0, num_rows(batch)) else take_rows(batch, slice(first, last))

    def _moments(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """(P, 4) of the P answers in a batch: their moments, and which row of it each belongs to."""
        logits, labels = self._answers(model, batch)
        known = labels >= 0
        answers, truth = logits[known], labels[known]
        found = [
            moments(answers[start : start + CHUNK], truth[start : start + CHUNK]).cpu()
            for start in range(0, len(truth), CHUNK)
        ]
        by_answer = torch.cat([torch.zeros(3, 0, dtype=torch.float64), *found], dim=1)
        return torch.cat([by_answer, known.nonzero()[None, :, 0].cpu()]).T

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
