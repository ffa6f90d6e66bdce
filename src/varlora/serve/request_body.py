"""What all bodies of requests share: strict types, and no parameter that nothing follows."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from varlora.io.nearest import nearest
from varlora.serve.errors import RequestError, invalid


class RequestBody(BaseModel):
    """A body, or an object in one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                check_unicode(name, "the body")
                name = name[:200]
                near = nearest(name, cls.model_fields, otherwise="")
                allowed = ", ".join(sorted(cls.model_fields))
                raise invalid(
                    name,
                    f"unknown parameter {name!r}; {f'{near} Allowed' if near else 'allowed'}: {allowed}.",
                    code="unknown_parameter",
                )
        return given


def unsupported(param: str, why: str) -> RequestError:
    """A parameter that the server does not follow, and so refuses."""
    return invalid(param, f"{param!r} is not supported: {why}", code="unsupported_parameter")


def check_unicode(text: str, param: str) -> None:
    """Refuses what JSON can write and UTF-8 cannot.

    Raises:
        RequestError: the text has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(param, f"{param} has half of a surrogate pair, which is no text.") from error


def check_length(characters: int, param: str, most: int) -> None:
    """Refuses a text that is too long.

    Raises:
        RequestError: it has more than `most` characters.
    """
    if characters > most:
        raise invalid(param, f"{param} has {characters} characters; allowed: {most}.", code="text_too_long")
