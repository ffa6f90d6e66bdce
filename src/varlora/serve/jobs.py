"""What the worker's thread and the server's event loop share of a request."""

from __future__ import annotations

import asyncio
import time
from typing import Any


class Job:
    """A request's place in the queue. It is made in the event loop; `emit`, `finish` and `fail` are the worker's.

    Args:
        size: rows or texts that it asks for.
        seconds: until nobody waits for it any more.

    Attributes:
        events: what the worker has emitted, in order: a result, an exception, or anything before it.
        deadline: of `time.monotonic`.
        cancelled: whether nobody waits for it any more.
        started: whether the worker has begun.
    """

    def __init__(self, *, size: int, seconds: float) -> None:
        self.size = size
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.deadline = time.monotonic() + seconds
        self.cancelled = False
        self.started = False
        self.ended = False

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for it."""
        return not self.cancelled and not self.ended and time.monotonic() < self.deadline

    def emit(self, event: Any) -> None:
        """Hands something over to the event loop."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server has gone, and whoever waited with it
            self.cancelled = True

    def finish(self, result: Any) -> None:
        """The last event, a result."""
        if not self.ended:
            self.ended = True
            self.emit(result)

    def fail(self, error: Exception) -> None:
        """The last event, an exception."""
        self.finish(error)
