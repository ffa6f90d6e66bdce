"""What a server is told: where it listens, who may ask, and how much."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any

from varlora.registry.option_fields import checked_values, option

API_KEY = "VARLORA_API_KEY"
"""The environment variable that holds the key where the option does not."""


def _server(default: Any, help_text: str, **bounds: float) -> Any:
    return option(default, help_text, group="server", **bounds)


def _limit(default: Any, help_text: str, **bounds: float) -> Any:
    return option(default, help_text, group="limits", **bounds)


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of `varlora serve`.

    Raises:
        ValueError: a value is out of its bounds, or they contradict each other.

    Example:
        >>> ServeSettings(max_rows=0)
        Traceback (most recent call last):
        ValueError: max_rows is 0; it must be at least 1.
    """

    host: str = _server("127.0.0.1", "Address to listen on; 0.0.0.0 is every network that the machine is in.")
    port: int = _server(8000, "Port to listen on; 0 takes a free one.", at_least=0, at_most=65535)
    api_key: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": f"Token that every request must bear; better in the environment as {API_KEY}, as other users of "
            "the machine can read a command line.",
            "group": "server",
            "bounds": {},
        },
    )
    text_samples: int = _server(
        0,
        "Texts are the vote of that many posterior draws where a request does not say; 0 writes at the mean, in one "
        "pass.",
        at_least=0,
        at_most=128,
    )
    log_requests: bool = _server(
        False, "Log a line per request: method, path, status and seconds, and nothing of what was asked."
    )

    max_body_bytes: int = _limit(1 << 20, "Most bytes of a request.", at_least=1024)
    max_text_length: int = _limit(32_768, "Most characters of a row's texts, or of a prompt.", at_least=1)
    max_rows: int = _limit(256, "Most rows or texts that one request may ask for, draws counted.", at_least=1)
    max_waiting: int = _limit(
        1024, "Most rows and texts that are accepted and not yet answered; further requests get a 429.", at_least=1
    )
    max_tokens: int = _limit(1024, "Most new tokens of a text.", at_least=1)
    max_logprobs: int = _limit(1000, "Most tokens of a position whose log-probabilities a request gets.", at_least=0)
    timeout: float = _limit(60.0, "Seconds until a request that is not answered gets a 504.", above=0)
    shutdown_timeout: float = _limit(30.0, "Seconds that what was accepted has to end after SIGTERM.", at_least=0)
    batch_rows: int = _limit(32, "Most rows or texts that are computed together.", at_least=1)
    batch_tokens: int = _limit(16_384, "Most tokens of the texts that are written together.", at_least=1)

    def __post_init__(self) -> None:
        for name, value in checked_values(type(self), dataclasses.asdict(self)).items():
            object.__setattr__(self, name, value)
        if self.api_key is not None and (
            not self.api_key or not self.api_key.isascii() or self.api_key.strip() != self.api_key
        ):
            raise ValueError("api_key must be ASCII text without spaces around it, and not empty.")
        if self.max_waiting < self.max_rows:
            raise ValueError(
                f"max_waiting is {self.max_waiting} and max_rows {self.max_rows}: a request of {self.max_rows} rows "
                "could never be accepted. Raise max_waiting."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("127.0.0.1", "localhost", "::1")


NAMES = tuple(f.name for f in fields(ServeSettings))
