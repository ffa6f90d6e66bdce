"""What a client is told when its request is not answered: an error in the shape of OpenAI's API."""

from __future__ import annotations

import math
from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class RequestError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what was given, what is allowed, what to do.
        param: the parameter it is about.
        code: one word for programs.
        retry_after: seconds after which to ask again.

    Example:
        >>> RequestError(429, "too many", code="queue_full", retry_after=1.2).headers()
        {'retry-after': '2'}
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers beside it."""
        headers = {} if self.retry_after is None else {"retry-after": str(math.ceil(self.retry_after))}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers


def invalid(param: str, message: str, *, code: str | None = None) -> RequestError:
    """A parameter that cannot be followed as it is; the arguments are as of `RequestError`."""
    return RequestError(400, message, param=param, code=code)
