"""A client of an OpenAI-compatible server: requests bounded in number and time, and repeated where that helps."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

API_KEY = "VARLORA_API_KEY"
"""Environment variable with the server's key."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
LONGEST_WAIT = 30.0
"""Seconds between two tries, at most."""


class ServerError(ValueError):
    """A server does not do what it is asked.

    Attributes:
        status: the HTTP status of its answer; None where there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A server that answers for a predictor, and how it is asked.

    Attributes:
        url: up to and with the version, "http://localhost:8000/v1".
        api_key: bearer token; None takes that in the environment as `VARLORA_API_KEY`, if there is one.
        timeout: seconds that one request may take.
        retries: how often a request is repeated that found no connection, no time or no room (429, 5xx).
        concurrency: most requests at once.
        top_logprobs: how many of the likeliest tokens to ask for, of servers that do not tell those of given tokens.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> Backend(url="http://localhost:8000/v1/").url
        'http://localhost:8000/v1'
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 5
    concurrency: int = 8
    top_logprobs: int = 20

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the backend is {self.url!r}; give a URL such as http://localhost:8000/v1.")
        object.__setattr__(self, "url", self.url.rstrip("/"))
        for name, least in (("retries", 0), ("concurrency", 1), ("top_logprobs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; it must be above 0 seconds.")


class Client:
    """Asks one server. Its connections are kept; threads may share it."""

    def __init__(self, backend: Backend) -> None:
        if importlib.util.find_spec("httpx") is None:
            raise ValueError("asking a server needs httpx: pip install 'varlora[remote]'.")
        import httpx

        self.backend = backend
        key = backend.api_key if backend.api_key is not None else os.environ.get(API_KEY)
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=backend.timeout,
            limits=httpx.Limits(max_connections=backend.concurrency),
            follow_redirects=False,  # a key goes to nobody else
        )

    def get(self, path: str) -> dict[str, Any]:
        """What a GET of a path below the URL answers."""
        return self._ask("GET", path, None)

    def post_all(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers to several requests, in their order; at the first that fails, those not yet begun are dropped.

        Raises:
            ServerError: one fails, after its tries.
        """
        pool = ThreadPoolExecutor(max_workers=self.backend.concurrency, thread_name_prefix="varlora-backend")
        try:
            return list(pool.map(lambda body: self._ask("POST", path, body), bodies))
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        import httpx

        url, wait = f"{self.backend.url}{path}", 0.5
        for attempt in range(self.backend.retries + 1):
            try:
                response = self._http.request(method, url, json=body)
            except httpx.TransportError as error:  # no connection, or no answer in time
                message, retry_after, status = f"{type(error).__name__} ({error})", None, None
            else:
                if response.status_code not in PASSING:
                    return _content(response, url)
                message, retry_after, status = _message(response), _retry_after(response), response.status_code
            if attempt == self.backend.retries:
                break
            seconds = min(LONGEST_WAIT, max(wait * random.uniform(1, 1.5), retry_after or 0.0))
            logger.info("%s: %s; asked again in %.1f s", url, message, seconds)
            time.sleep(seconds)
            wait *= 2
        tries = "1 try" if self.backend.retries == 0 else f"{self.backend.retries + 1} tries"
        raise ServerError(f"{url} does not answer after {tries}: {message}. Is the server ready?", status=status)


def _content(response: httpx.Response, url: str) -> dict[str, Any]:
    if response.status_code == 401:
        raise ServerError(f"{url} wants a key: give api_key, or {API_KEY} in the environment.", status=401)
    if response.status_code != 200:
        raise ServerError(f"{url} refuses: {_message(response)}", status=response.status_code)
    try:
        content = response.json()
    except ValueError as error:
        raise ServerError(f"{url} answers with no JSON; is it the server's address, with /v1?") from error
    if not isinstance(content, dict):
        raise ServerError(f"{url} answers with {type(content).__name__}, and not as OpenAI's API does.")
    return content


def _message(response: httpx.Response) -> str:
    """What a refusal says: its status, and the error's message where there is one."""
    try:
        content = response.json()
        error = content.get("error", content) if isinstance(content, dict) else content
        message = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        message = response.text
    return f"{response.status_code} {str(message)[:500]}"


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
