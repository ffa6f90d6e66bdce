"""The process of a server: it listens, and ends in order when it is asked to.

SIGTERM (or Ctrl-C): new requests get a 503, what was accepted is answered, and then the process ends with code 0. A
second signal ends it at once.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from varlora.serve.middleware import Traffic
from varlora.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulServer(uvicorn.Server):
    """uvicorn's server, which goes on listening while what was accepted is answered, to refuse the rest.

    Args:
        config: uvicorn's.
        traffic: what comes and goes.
        seconds: that what was accepted has to end.
        ready: called when requests are answered.
    """

    def __init__(self, config: uvicorn.Config, traffic: Traffic, seconds: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.traffic, self.seconds, self.ready = traffic, seconds, ready
        self._until = 0.0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Within the block signals stop the server; afterwards they do what they did."""
        former = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says so."""
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self.traffic.stopping and (self.traffic.active == 0 or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.traffic.stopping:
            self.should_exit = self.force_exit = True
        self.traffic.stopping = True
        self._until = time.monotonic() + self.seconds


def serve(app: FastAPI, settings: ServeSettings, ready: Callable[[str], None]) -> None:
    """Serves until the process is asked to end.

    Args:
        app: of `create_app`.
        settings: where to listen.
        ready: called with the address when requests are answered.

    Raises:
        ValueError: the address is taken, or is none of this machine's.
    """
    listening = _listen(settings)
    port = listening.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    if not settings.is_local and settings.api_key is None:
        logger.warning(
            "everybody who reaches %s can ask this server, since it has no api_key; set one, or listen on 127.0.0.1.",
            settings.host,
        )
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=75,  # longer than clients keep theirs, so that none asks on one that is being closed
        timeout_graceful_shutdown=2,
    )
    server = GracefulServer(
        config, app.state.traffic, settings.shutdown_timeout, lambda: ready(f"http://{host}:{port}")
    )
    with listening:
        server.run(sockets=[listening])


def _listen(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror}. Give another --port (0 takes a "
            "free one), or another --host."
        ) from error
