"""From a request to its answer: a place in the queue, and nobody left waiting for it or by it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import Request

from varlora.serve.batcher import Batcher
from varlora.serve.errors import RequestError
from varlora.serve.jobs import Job
from varlora.serve.worker import QueueCapacity, Worker


class ClientGone(Exception):
    """The client has left; there is nobody to answer."""


class QueuePlace:
    """A job's place in the queue, from `enter` to `leave`.

    Args:
        room: counts what waits.
        worker: whose thread does the job.
        batcher: where the job waits.
        job: the job.
    """

    def __init__(self, room: QueueCapacity, worker: Worker, batcher: Batcher[Any], job: Job) -> None:
        self.room, self.worker, self.batcher, self.job = room, worker, batcher, job

    def enter(self) -> None:
        """Takes the place, and gives the job to the worker.

        Raises:
            RequestError: there is no room, or the worker has ended.
        """
        if not self.worker.is_alive:
            raise RequestError(503, "the model's thread has ended; the server must be started again.", code="no_worker")
        self.room.enter(self.job.size)
        self.worker.submit(self.batcher, self.job)

    def leave(self) -> None:
        """Gives the place back; a job that is not done is not wanted any more."""
        self.job.cancelled = True
        self.room.leave(self.job.size)


async def next_event(job: Job, request: Request | None) -> Any:
    """The next thing that the worker hands over.

    Args:
        job: the job.
        request: whose client is watched; None where something else does.

    Raises:
        RequestError: the job has failed, or its time is over.
        ClientGone: the client has left.
    """
    waiting: set[asyncio.Task[Any]] = {asyncio.ensure_future(job.events.get())}
    gone = asyncio.ensure_future(_left(request)) if request is not None else None
    try:
        done, _ = await asyncio.wait(
            waiting if gone is None else {*waiting, gone},
            timeout=max(job.deadline - time.monotonic(), 0),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not done:
            raise _too_late(job)
        if gone is not None and gone in done and not waiting & done:
            raise ClientGone
        event = (waiting & done).pop().result()
    finally:
        for task in (*waiting, gone):
            if task is not None:
                task.cancel()
    if isinstance(event, Exception):
        raise event
    return event


async def _left(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_late(job: Job) -> RequestError:
    if job.started:
        return RequestError(504, "the model took too long; ask for fewer rows or tokens.", code="timeout")
    return RequestError(
        503, "the server is busy, and the request's turn did not come in time.", code="overloaded", retry_after=5
    )
