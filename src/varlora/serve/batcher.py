"""One kind of work on a base model: jobs come in, are opened, and are wanted until they end."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection
from typing import ClassVar, Generic, TypeVar

from varlora.serve.errors import RequestError
from varlora.serve.jobs import Job

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Job)


class Batcher(ABC, Generic[Kind]):
    """The jobs of one kind that wait for a base model, and those that it works on.

    `accept` is called by the event loop, all else by the worker's thread. Subclasses say what a job is opened to, and
    what one step does.
    """

    kind: ClassVar[type[Job]]

    def __init__(self) -> None:
        self._inbox: deque[Kind] = deque()

    def accept(self, job: Kind) -> None:
        """Puts a job at the end of those that wait."""
        assert isinstance(job, self.kind)
        self._inbox.append(job)

    def has_work(self) -> bool:
        """Whether there is something to do."""
        return bool(self._inbox or self.opened())

    def step(self) -> None:
        """Opens what has come, and works a little. Raises nothing that is about a job."""
        while self._inbox:
            job = self._inbox.popleft()
            try:
                self.open(job)
            except Exception:  # it is in neither place now, where `abandon` would find it
                logger.exception("a request could not be begun")
                job.fail(RequestError(500, "the request could not be begun; the server's log says why."))
        self.advance()

    def abandon(self, error: Exception) -> None:
        """Fails every job there is."""
        for job in self.opened():
            job.fail(error)
        while self._inbox:  # one by one: another may come meanwhile, and would be cleared without an answer
            self._inbox.popleft().fail(error)
        self.forget()

    @abstractmethod
    def opened(self) -> Collection[Kind]:
        """The jobs that it works on; one may be named more than once."""

    @abstractmethod
    def open(self, job: Kind) -> None:
        """Begins to work on a job, or fails it."""

    @abstractmethod
    def advance(self) -> None:
        """Does a little of the work: a batch of rows, or a token of every text."""

    @abstractmethod
    def forget(self) -> None:
        """Lets go of all jobs that were opened."""
