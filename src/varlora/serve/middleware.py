"""What stands before every endpoint: who may ask, how large a request may be, and how long it may take to come.

The body is read here, chunk by chunk, and refused as soon as it is too large, whatever the request says its size is.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from varlora.serve.errors import RequestError
from varlora.serve.metrics import ServerMetrics
from varlora.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

OPEN = ("/", "/page.css", "/page.js", "/healthz")
"""What is answered without a token: the page, which asks for it, and whether the server lives."""
WATCHED = ("/healthz", "/metrics")
"""What is answered while the server stops, or has too much to do."""
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_UNREAD = 16 << 20  # bytes of a refused body that are thrown away, so that its sender gets to read why
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


@dataclass
class Traffic:
    """What comes and goes.

    Attributes:
        stopping: whether new requests are refused.
        active: how many requests are being answered.
    """

    stopping: bool = False
    active: int = 0


class AccessMiddleware:
    """An ASGI application around another.

    Args:
        app: the other.
        settings: the limits.
        metrics: where requests are counted.
        traffic: what comes and goes.
        paths: of the endpoints; requests to others are counted together.
    """

    def __init__(
        self, app: ASGIApp, *, settings: ServeSettings, metrics: ServerMetrics, traffic: Traffic, paths: Collection[str]
    ) -> None:
        self.app, self.settings, self.metrics, self.paths = app, settings, metrics, frozenset(paths)
        self.traffic = traffic
        self.key = None if settings.api_key is None else _digest(settings.api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, sent = time.perf_counter(), _Sent(send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.traffic.active += 1
        try:
            await self._answer(scope, receive, sent)
        except Exception:
            sent.status = sent.status or 500
            raise
        finally:
            self.traffic.active -= 1
            seconds = time.perf_counter() - began
            status = str(sent.status) if sent.status else "gone"  # the client left before there was an answer
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            if self.settings.log_requests:
                logger.info("%s %s %s %.3f s", scope["method"], path, status, seconds)

    async def _answer(self, scope: Scope, receive: Receive, sent: _Sent) -> None:
        headers = Headers(scope=scope)
        try:
            self._admit(scope, headers)
            body = await self._read(scope, headers, receive)
        except RequestError as error:
            unread = scope["method"] == "POST"
            if unread:
                await _throw_away(receive)
            more = {"connection": "close"} if unread else {}
            response = JSONResponse(error.body(), status_code=error.status, headers={**error.headers(), **more})
            await response(scope, receive, sent)
            return
        if body is not None:
            await self.app(scope, _Replay(body, receive), sent)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        watched = path in WATCHED
        if self.traffic.stopping and not watched:
            raise RequestError(503, "the server is stopping; ask another, or later.", code="stopping", retry_after=5)
        if self.traffic.active > 2 * self.settings.max_waiting and not watched:  # bodies that come must not fill memory
            raise RequestError(503, "too many requests come at a time; ask again later.", code="busy", retry_after=5)
        if self.key is None:
            self._check_host(headers.get("host", ""))
        elif path not in OPEN:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(token.strip().encode()), self.key):
                raise RequestError(
                    401, "the request bears no valid token; send 'Authorization: Bearer TOKEN'.", code="invalid_api_key"
                )

    def _check_host(self, host: str) -> None:
        """A page of another site may have its name point here, and then ask as if it were ours."""
        if self.settings.is_local and host.rpartition(":")[0] not in _LOCAL and host not in _LOCAL:
            raise RequestError(
                403,
                "this server answers to 127.0.0.1 and localhost only. Behind a proxy, or under another name, give it "
                "an api_key.",
                code="wrong_host",
            )

    async def _read(self, scope: Scope, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None where the client has left."""
        if scope["method"] != "POST":
            return b""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # another site's page may send anything but this without asking
            raise RequestError(415, f"the content type is {kind[:80]!r}; send application/json.", code="content_type")
        largest = self.settings.max_body_bytes
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > largest:
            raise self._too_large()
        until = time.monotonic() + self.settings.timeout
        body = bytearray()
        while True:
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except asyncio.TimeoutError as error:
                raise RequestError(408, "the request took too long to come.", code="timeout") from error
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > largest:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> RequestError:
        return RequestError(
            413,
            f"the request has more than {self.settings.max_body_bytes} bytes; send fewer rows at a time.",
            code="body_too_large",
        )


class _Sent:
    """Passes on what is sent, with the headers that all answers have, and keeps the status."""

    def __init__(self, send: Send) -> None:
        self.send, self.status = send, 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *_SECURITY]}
        await self.send(message)


class _Replay:
    """Hands out the body that has been read, and then what comes after it: that the client has left."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self.receive()


async def _throw_away(receive: Receive) -> None:
    """Reads what is still coming of a refused body, for a second and not without end."""
    left, until = _UNREAD, time.monotonic() + 1
    while left > 0 and (seconds := until - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), seconds)
        except asyncio.TimeoutError:
            return
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))


def _digest(token: bytes) -> bytes:
    """Of one length for all tokens, so that comparing takes equally long."""
    return hashlib.sha256(token).digest()
