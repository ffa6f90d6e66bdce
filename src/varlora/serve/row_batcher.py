"""Rows to classify: those of all requests in one batch, an equal number of each.

A row's answer does not depend on its neighbours, since the draws of the weights are the same for all batches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from varlora.serve.batcher import Batcher
from varlora.serve.errors import RequestError, invalid
from varlora.serve.jobs import Job
from varlora.serve.metrics import ServerMetrics

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


class Classifier(Protocol):
    """What answers rows."""

    @property
    def name(self) -> str:
        """Of the model that is served."""

    @property
    def columns(self) -> frozenset[str]:
        """What a row may hold."""

    def facts(self) -> dict[str, Any]:
        """What an answer says of the model: its kind, its classes, how many draws it averages."""

    def answer(self, rows: Sequence[Row], *, draws: bool) -> list[dict[str, Any]]:
        """An answer for each row, as plain JSON; `draws` adds the probabilities of each draw.

        Raises:
            ValueError: a row cannot be read.
        """


class RowJob(Job):
    """Rows of one request.

    Args:
        classifier: what answers them.
        rows: without ids.
        draws: whether each draw's probabilities are asked for.
        seconds: until nobody waits for them any more.
    """

    def __init__(self, classifier: Classifier, rows: Sequence[Row], *, draws: bool, seconds: float) -> None:
        super().__init__(size=len(rows), seconds=seconds)
        self.classifier, self.rows, self.draws = classifier, rows, draws
        self.taken = 0
        self.answers: list[dict[str, Any]] = []


class RowBatcher(Batcher[RowJob]):
    """The rows that wait for one base model.

    Args:
        batch_rows: most rows of a batch.
        metrics: where batches are counted.
    """

    kind = RowJob

    def __init__(self, batch_rows: int, metrics: ServerMetrics) -> None:
        super().__init__()
        self.batch_rows, self.metrics = batch_rows, metrics
        self._jobs: list[RowJob] = []
        self._former: tuple[str, bool] | None = None

    def opened(self) -> Sequence[RowJob]:
        """Whose rows wait."""
        return self._jobs

    def open(self, job: RowJob) -> None:
        """Puts its rows behind those that wait."""
        self._jobs.append(job)

    def advance(self) -> None:
        """Answers one batch."""
        taken = self._next_batch()
        if taken:
            self._answer(taken)
        self._jobs = [job for job in self._jobs if job.is_wanted]

    def forget(self) -> None:
        """No rows wait."""
        self._jobs = []

    def _next_batch(self) -> list[tuple[RowJob, int]]:
        """Jobs of one model and how many of their rows: one of each job in turn, until the batch is full."""
        jobs = [job for job in self._jobs if job.is_wanted]
        kinds = list(dict.fromkeys((job.classifier.name, job.draws) for job in jobs))
        if not kinds:
            return []
        at = kinds.index(self._former) + 1 if self._former in kinds else 0  # no model waits for all rows of another
        self._former = kinds[at % len(kinds)]
        mine = [job for job in jobs if (job.classifier.name, job.draws) == self._former]
        counts = dict.fromkeys(mine, 0)
        free = self.batch_rows
        while free and (open_jobs := [job for job in mine if job.taken + counts[job] < job.size]):
            for job in open_jobs[:free]:
                counts[job] += 1
                free -= 1
        return [(job, count) for job, count in counts.items() if count]

    def _answer(self, taken: Sequence[tuple[RowJob, int]]) -> None:
        rows = [row for job, count in taken for row in job.rows[job.taken : job.taken + count]]
        first = taken[0][0]
        for job, _ in taken:
            job.started = True
        try:
            answers = first.classifier.answer(rows, draws=first.draws)
        except Exception as error:
            if len(taken) > 1:  # whose row it is shows where each request is asked alone
                for one in taken:
                    self._answer([one])
            elif isinstance(error, ValueError):
                counted = f"counted from row {first.taken + 1}: " if first.taken else ""
                first.fail(invalid("rows", f"{counted}{error}", code="invalid_rows"))
            else:
                logger.exception("a batch of %d rows failed", len(rows))
                first.fail(RequestError(500, "the model failed on these rows; the server's log says why."))
            return
        self.metrics.batch_rows.labels("rows").observe(len(rows))
        for job, count in taken:
            job.answers += answers[:count]
            answers = answers[count:]
            job.taken += count
            if job.taken == job.size:
                job.finish(job.answers)
