"""The thread that owns a base model, and the count of what waits for all of them.

    event loop ──submit──► batchers of the model ──step, step, ...──► events of the jobs

A model computes one thing at a time, so whatever arrives meanwhile waits, and is computed together with its neighbours
when the thread comes back: nothing is held back to fill a batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from varlora.serve.batcher import Batcher
from varlora.serve.errors import RequestError
from varlora.serve.jobs import Job

logger = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 1.0, 60.0


class Worker:
    """The thread of one base model.

    Args:
        name: the base model's, for the log.
        batchers: the kinds of work; each takes a step in turn.
    """

    def __init__(self, name: str, batchers: Sequence[Batcher[Any]]) -> None:
        self.name, self.batchers = name, tuple(batchers)
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"varlora {name}", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, batcher: Batcher[Any], job: Job) -> None:
        """Gives it a job; called by the event loop."""
        with self._condition:
            batcher.accept(job)
            self._condition.notify()

    def close(self) -> None:
        """Ends the thread after its step; what still waits fails."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()
        for batcher in self.batchers:
            batcher.abandon(RequestError(503, "the server has stopped.", code="stopping"))

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._closed and not any(batcher.has_work() for batcher in self.batchers):
                    self._condition.wait()
                if self._closed:
                    return
            for batcher in self.batchers:
                if batcher.has_work():
                    try:
                        batcher.step()
                    except Exception:  # or nobody would answer any more
                        logger.exception("a step of %s failed", self.name)
                        batcher.abandon(RequestError(500, "the model failed; the server's log says why."))


class QueueCapacity:
    """How many rows and texts are accepted and not yet answered; it belongs to the event loop.

    Args:
        places: the most there may be.
    """

    def __init__(self, places: int) -> None:
        self.places, self.waiting = places, 0
        self._left: list[tuple[float, int]] = []

    def enter(self, size: int) -> None:
        """Takes places.

        Raises:
            RequestError: there are not as many, with the time after which there may be.
        """
        if self.waiting + size > self.places:
            raise RequestError(
                429,
                f"{self.waiting} rows and texts wait for their answers, and the server accepts {self.places}; these "
                f"{size} would be too many. Ask again later (Retry-After), or ask for fewer at a time.",
                code="queue_full",
                retry_after=self._seconds_until_free(size),
            )
        self.waiting += size

    def leave(self, size: int) -> None:
        """Gives places back."""
        self.waiting -= size
        self._left = [*self._left[-63:], (time.monotonic(), size)]

    def _seconds_until_free(self, size: int) -> float:
        if len(self._left) < 2:
            return _SHORTEST
        elapsed = time.monotonic() - self._left[0][0]
        rate = sum(left for _, left in self._left) / max(elapsed, 1e-3)
        return min(max((self.waiting + size - self.places) / rate, _SHORTEST), _LONGEST)
