"""Texts to write: newcomers join those that are being written between two tokens."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from varlora.serve.batcher import Batcher
from varlora.serve.decoding_batch import DecodingBatch, prefill_groups
from varlora.serve.errors import RequestError
from varlora.serve.jobs import Job
from varlora.serve.language_model import BASE, LanguageModel, mixes
from varlora.serve.metrics import ServerMetrics
from varlora.serve.sequences import TextSequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """More of a text can be shown.

    Attributes:
        text: which of the job's texts.
        new: what is new of it.
        scored: how many of its tokens there are by now.
    """

    text: int
    new: str
    scored: int


class TextJob(Job):
    """The texts of one request.

    Args:
        model: what writes them.
        sequences: the texts; a draw's are told by `TextSequence.draw`.
        samples: how many draws write, 0 for the point.
        streamed: whether every new piece is to be handed over (`Progress`), and not only the end.
        seconds: until nobody waits for them any more.
    """

    def __init__(
        self, model: LanguageModel, sequences: Sequence[TextSequence], *, samples: int, streamed: bool, seconds: float
    ) -> None:
        super().__init__(size=len(sequences), seconds=seconds)
        self.model, self.sequences, self.samples, self.streamed = model, list(sequences), samples, streamed
        self.pending = len(sequences)


class TextBatcher(Batcher[TextJob]):
    """The texts that wait for one base model, and those that are being written.

    Args:
        batch_rows: most texts that are written together.
        batch_tokens: most tokens that these can come to; a job that is larger is written alone.
        metrics: where batches are counted.
    """

    kind = TextJob

    def __init__(self, batch_rows: int, batch_tokens: int, metrics: ServerMetrics) -> None:
        super().__init__()
        self.batch_rows, self.batch_tokens, self.metrics = batch_rows, batch_tokens, metrics
        self._waiting: deque[TextSequence] = deque()
        self._jobs: dict[TextSequence, TextJob] = {}
        self._batches: dict[str, list[DecodingBatch]] = {}

    def opened(self) -> Collection[TextJob]:
        """Whose texts wait or are being written, once for each."""
        return self._jobs.values()

    def advance(self) -> None:
        """Lets newcomers in, and writes one token of every text."""
        self._drop_unwanted()
        batches = [(lane, batch) for lane, running in self._batches.items() for batch in running if batch.sequences]
        for lane, batch in batches:
            before = list(batch.sequences)
            try:
                batch.step()
            except Exception:
                logger.exception("a token of %d texts failed", len(before))
                self._batches[lane].remove(batch)
                self._fail(before)
            else:
                self.metrics.batch_rows.labels("texts").observe(len(before))
                self._report(before)
        self._let_in()
        self._batches = {
            lane: kept for lane, running in self._batches.items() if (kept := [one for one in running if one.sequences])
        }

    def forget(self) -> None:
        """No text waits or is being written."""
        self._jobs.clear()
        self._waiting.clear()
        self._batches.clear()

    def open(self, job: TextJob) -> None:
        """Makes sure of its draws, and puts its texts behind those that wait."""
        try:
            adapters = job.model.adapters(job.samples)
        except Exception as error:
            logger.exception("the draws of %s cannot be made", job.model.name)
            job.fail(RequestError(500, f"the draws of model {job.model.name!r} cannot be made: {error}"))
            return
        for sequence in job.sequences:
            sequence.adapter = adapters[sequence.draw or 0]
            self._jobs[sequence] = job
            self._waiting.append(sequence)

    def _let_in(self) -> None:
        """Reads the prompts of those for which there is room, in the order in which they came."""
        writing = [one for running in self._batches.values() for batch in running for one in batch.sequences]
        rows, tokens = len(writing), sum(map(_size, writing))
        lanes: dict[str, list[TextSequence]] = {}
        while self._waiting:
            sequence = self._waiting[0]
            if rows and (rows >= self.batch_rows or tokens + _size(sequence) > self.batch_tokens):
                break
            self._waiting.popleft()
            rows, tokens = rows + 1, tokens + _size(sequence)
            lanes.setdefault(self._lane(sequence), []).append(sequence)
        for lane, newcomers in lanes.items():
            for group in prefill_groups(newcomers):
                self._prefill(lane, group)

    def _prefill(self, lane: str, group: list[TextSequence]) -> None:
        try:
            batch = DecodingBatch(self._jobs[group[0]].model.model, group)
        except Exception:
            if len(group) > 1:  # whose prompt it is shows where each is read alone
                for sequence in group:
                    self._prefill(lane, [sequence])
                return
            logger.exception("the prompt of a text failed")
            self._fail(group)
            return
        for sequence in group:
            self._jobs[sequence].started = True
        self.metrics.batch_rows.labels("prompts").observe(len(group))
        self._report(group)
        running = self._batches.setdefault(lane, [])
        if not batch.sequences:
            return
        if running and running[0].sequences and running[0].can_join(batch):
            running[0].join(batch)
        else:
            running.append(batch)

    def _lane(self, sequence: TextSequence) -> str:
        """What texts share that can be written in one batch."""
        if sequence.adapter == BASE:
            return ""
        config = self._jobs[sequence].model.model.peft_config[sequence.adapter]
        return "" if mixes(config) else sequence.adapter

    def _drop_unwanted(self) -> None:
        gone = {sequence for sequence, job in self._jobs.items() if not job.is_wanted}
        if gone:
            for running in self._batches.values():
                for batch in running:
                    batch.drop(gone)
            self._waiting = deque(sequence for sequence in self._waiting if sequence not in gone)
            self._forget(gone)

    def _report(self, sequences: Sequence[TextSequence]) -> None:
        """Hands over what is new, and ends the jobs whose texts have all ended."""
        for sequence in sequences:
            job = self._jobs[sequence]
            ended = sequence.finish_reason is not None
            if job.streamed and (new := sequence.stream.take(last=ended)):
                job.emit(Progress(text=job.sequences.index(sequence), new=new, scored=len(sequence.scored)))
            if ended:
                self.metrics.tokens.labels(job.model.name).inc(len(sequence.scored))
                job.pending -= 1
                self._forget([sequence])
                if not job.pending:
                    job.finish(job.sequences)

    def _fail(self, sequences: Sequence[TextSequence]) -> None:
        for job in {self._jobs[sequence] for sequence in sequences}:
            job.fail(RequestError(500, "the model failed on this batch; the server's log says why."))
        self._forget(sequences)

    def _forget(self, sequences: Collection[TextSequence]) -> None:
        for sequence in sequences:
            self._jobs.pop(sequence, None)


def _size(sequence: TextSequence) -> int:
    return len(sequence.prompt) + sequence.max_new_tokens
