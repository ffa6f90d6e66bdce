"""What may be asked of the endpoints that are OpenAI's; what is not followed is refused by name, and never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from varlora.serve.errors import invalid
from varlora.serve.request_body import RequestBody, unsupported

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "suffix": ("",),
    "store": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "top_k": (0, -1),
    "min_p": (0,),
    "modalities": (["text"],),
}
"""Parameters that the server does not follow, and the values with which they ask for nothing."""


class StreamOptions(RequestBody):
    """Of a stream."""

    include_usage: bool = False


class TextRequest(RequestBody):
    """What both endpoints share.

    `samples` is ours: texts are the vote of that many posterior draws, 0 writes at the mean.
    """

    model: str | None = None
    n: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Accepted, and used for nothing.")
    samples: int | None = Field(default=None, ge=0)
    logprob_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, max_length=1000)
    return_tokens_as_token_ids: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_followed(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        left = {name: value for name, value in given.items() if value is not None}
        for name, neutral in _NEUTRAL.items():
            if name in left and left.pop(name) not in neutral:
                raise unsupported(name, f"leave it out (or give {neutral[0]!r}, which asks for nothing).")
        return left

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
            RequestError: the message names the parameter.
        """
        if len(self.stops) > 16 or not all(0 < len(stop) <= 200 for stop in self.stops):
            raise invalid("stop", "stop must be at most 16 strings of 1 to 200 characters.")
        if self.n > 1 and self.temperature == 0:
            raise invalid(
                "n",
                f"n is {self.n} and temperature 0, which gives {self.n} times the same text; give a temperature above "
                "0, or samples, with which posterior draws write.",
            )
        if self.temperature == 0 and self.top_p < 1:
            raise invalid("top_p", f"top_p is {self.top_p}, which has no effect at temperature 0; leave it out.")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "stream_options has no effect without stream.")


class TextPart(RequestBody):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(RequestBody):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _leave_out_null(cls, given: Any) -> Any:
        """An answer's message that is sent back says `"refusal": null`."""
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    def plain(self) -> dict[str, str]:
        """As a chat template reads it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(TextRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0)

    def check(self) -> None:
        super().check()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise invalid("max_tokens", "give max_tokens or max_completion_tokens, not both.")
        for name in ("top_logprobs", "logprob_token_ids"):
            if getattr(self, name) is not None and not self.logprobs:
                raise invalid(name, f"{name} has no effect without logprobs=true.")

    @property
    def top(self) -> int | None:
        """How many tokens of a place are wanted; None: no log-probability is."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(TextRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = Field(default=16, ge=0)
    logprobs: int | None = Field(default=None, ge=0)
    echo: bool = False

    def check(self) -> None:
        super().check()
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens", "max_tokens is 0, which is allowed with echo alone (to score the prompt).")
        if self.echo and (self.stream or self.samples):
            raise invalid("echo", "echo goes neither with stream nor with samples.")
        if self.logprob_token_ids is not None and self.logprobs is None:
            raise invalid("logprob_token_ids", "logprob_token_ids has no effect without logprobs.")

    @property
    def top(self) -> int | None:
        """How many tokens of a place are wanted; None: no log-probability is."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more prompts, as texts or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(one, int) for one in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
