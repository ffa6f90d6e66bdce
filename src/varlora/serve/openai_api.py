"""`POST /v1/chat/completions` and `POST /v1/completions`, as the openai client asks them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from varlora.serve.errors import RequestError, invalid
from varlora.serve.language_model import LanguageModel
from varlora.serve.openai_answers import (
    Choice,
    TokenNames,
    choice_of,
    completion_logprobs,
    usage,
    visible_tokens,
)
from varlora.serve.openai_requests import ChatRequest, CompletionRequest
from varlora.serve.request_body import check_length, check_unicode
from varlora.serve.sequences import Sampling, TextSequence
from varlora.serve.served import Directory, Served
from varlora.serve.settings import ServeSettings
from varlora.serve.text_batcher import Progress, TextJob
from varlora.serve.text_stream import TextStream
from varlora.serve.waiting import QueuePlace, next_event
from varlora.serve.worker import QueueCapacity

MOST_LOGPROBS = 2_000_000
"""Most log-probabilities of likely or named tokens that a request may come to, which would fill the memory else."""

Asked = ChatRequest | CompletionRequest


def openai_router(directory: Directory, room: QueueCapacity, settings: ServeSettings) -> APIRouter:
    """The endpoints."""
    router = APIRouter()

    async def answered(asked: Asked, request: Request) -> Response:
        asked.check()
        served = directory.writing(asked.model)
        texts = _Texts(asked, served, settings)
        place = QueuePlace(room, served.worker, served.text_batcher, texts.job)
        place.enter()
        if asked.stream:
            return _Stream(texts.stream(), place)
        try:
            await next_event(texts.job, request)
        finally:
            place.leave()
        return JSONResponse(texts.body())

    @router.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        return await answered(asked, request)

    @router.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        return await answered(asked, request)

    return router


class _Stream(StreamingResponse):
    """An answer in pieces, which gives its place back whatever becomes of it."""

    def __init__(self, pieces: AsyncIterator[str], place: QueuePlace) -> None:
        super().__init__(pieces, media_type="text/event-stream")
        self.place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.place.leave()


class _Texts:
    """One request's texts: (prompts x n) choices, each written once or by several draws."""

    def __init__(self, asked: Asked, served: Served, settings: ServeSettings) -> None:
        assert served.language is not None
        self.asked, self.served, self.model = asked, served, served.language
        self.chat = isinstance(asked, ChatRequest)
        self.samples = self._samples(settings)
        self.prompts = _prompts(asked, self.model, settings)
        self.names = TokenNames(tokenizer=self.model.tokenizer, as_ids=asked.return_tokens_as_token_ids)
        if (asked.top or 0) > settings.max_logprobs:
            param = "top_logprobs" if self.chat else "logprobs"
            raise invalid(param, f"{param} is {asked.top}; allowed: 0 to {settings.max_logprobs}.")
        written = len(self.prompts) * asked.n * max(self.samples, 1)
        if written > settings.max_rows:
            raise invalid(
                "n",
                f"{len(self.prompts)} prompts, n {asked.n} and samples {self.samples} are {written} texts; allowed: "
                f"{settings.max_rows} a request.",
            )
        self.job = TextJob(
            self.model,
            self._sequences(settings),
            samples=self.samples,
            streamed=asked.stream and not self.samples,
            seconds=settings.timeout,
        )
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        choices = self._choices()
        return {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": [self._whole(index, choice) for index, choice in enumerate(choices)],
            "usage": usage(self.prompts, choices),
        }

    async def stream(self) -> AsyncIterator[str]:
        """The answer in pieces, as they are written; a vote's text comes when it is decided, which is at the end."""
        try:
            if self.chat:
                for index in range(len(self.prompts) * self.asked.n):
                    yield _event(self._chunk(index, {"role": "assistant", "content": ""}, None, None))
            shown = [0] * len(self.job.sequences)
            while isinstance(event := await next_event(self.job, None), Progress):
                sequence = self.job.sequences[event.text]
                seen = event.scored if not sequence.stream.stopped else visible_tokens(sequence)
                if event.new or seen > shown[event.text]:
                    piece = self._piece(sequence, shown[event.text], seen)
                    shown[event.text] = max(seen, shown[event.text])
                    yield _event(self._chunk(event.text, self._delta(event.new), piece, None))
            choices = self._choices()
            for index, choice in enumerate(choices):
                if self.samples:
                    piece = self._piece(choice.shown, 0, visible_tokens(choice.shown))
                    yield _event(self._chunk(index, self._delta(choice.shown.stream.text), piece, None))
                yield _event(self._chunk(index, self._delta(""), None, choice))
            if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
                yield _event({**self._head(self._chunk_kind), "choices": [], "usage": usage(self.prompts, choices)})
        except RequestError as error:
            yield _event(error.body())
            return
        yield "data: [DONE]\n\n"

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _samples(self, settings: ServeSettings) -> int:
        samples = self.asked.samples
        if samples is None:
            samples = min(settings.text_samples, self.model.samples)
            echo = isinstance(self.asked, CompletionRequest) and self.asked.echo
            return 0 if echo or self.asked.top is not None else samples  # scored are the weights of the mean
        self.model.check_samples(samples)
        return samples

    def _sequences(self, settings: ServeSettings) -> list[TextSequence]:
        asked = self.asked
        if any(token >= self.model.vocabulary for token in asked.logprob_token_ids or ()):
            raise invalid("logprob_token_ids", f"logprob_token_ids: the model has 0 to {self.model.vocabulary - 1}.")
        seed = asked.seed if asked.seed is not None else secrets.randbits(31)
        sequences = []
        for number, (tokens, before) in enumerate(self.prompts_and_context()):
            most = _most_tokens(asked, tokens, self.model, settings)
            self.model.check_room(tokens, most)
            for choice in range(asked.n):
                for draw in range(max(self.samples, 1)):
                    own = seed + (number * asked.n + choice) * max(self.samples, 1) + draw
                    sequences.append(
                        TextSequence(
                            prompt=tokens,
                            max_new_tokens=most,
                            sampling=Sampling(temperature=asked.temperature, top_p=asked.top_p, seed=own % 2**63),
                            draw=draw if self.samples else None,
                            top=asked.top,
                            wanted=tuple(asked.logprob_token_ids or ()),
                            echo=isinstance(asked, CompletionRequest) and asked.echo,
                            stream=TextStream(self.model.tokenizer, before, asked.stops),
                            ends=self.model.ends,
                        )
                    )
        scored = sum(one.max_new_tokens + (len(one.prompt) if one.echo else 0) for one in sequences)
        asked_for = scored * ((asked.top or 0) + len(asked.logprob_token_ids or ()))
        if asked_for > MOST_LOGPROBS:
            raise invalid(
                "top_logprobs" if self.chat else "logprobs",
                f"the request may come to {asked_for} log-probabilities; allowed: {MOST_LOGPROBS}. Ask for fewer "
                "texts, tokens or logprobs.",
                code="too_many_logprobs",
            )
        return sequences

    def prompts_and_context(self) -> list[tuple[list[int], list[int]]]:
        """The prompts, and the tokens that a text continues: none of a conversation, whose turn is new."""
        return [(tokens, [] if self.chat else tokens) for tokens in self.prompts]

    def _choices(self) -> list[Choice]:
        draws = max(self.samples, 1)
        groups = [self.job.sequences[first : first + draws] for first in range(0, len(self.job.sequences), draws)]
        return [choice_of(self.model, group, samples=self.samples) for group in groups]

    def _whole(self, index: int, choice: Choice) -> dict[str, Any]:
        shown = choice.shown
        common = {"index": index, "finish_reason": shown.finish_reason, "varlora": choice.facts}
        if self.chat:
            message = {"role": "assistant", "content": shown.stream.text, "refusal": None}
            logprobs = None if shown.top is None else self._piece(shown, 0, visible_tokens(shown))
            return {**common, "message": message, "logprobs": logprobs}
        before = ""
        if shown.echo:
            tokenizer = self.model.tokenizer
            before = str(tokenizer.decode(shown.prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        logprobs = completion_logprobs(self.names, shown, before=len(before))
        return {**common, "text": before + shown.stream.text, "logprobs": logprobs}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served.name}

    def _delta(self, new: str) -> dict[str, Any] | str:
        return ({"content": new} if new else {}) if self.chat else new

    def _piece(self, sequence: TextSequence, first: int, last: int) -> Any:
        if sequence.top is None:
            return None
        if self.chat:
            return {"content": [self.names.in_chat(one) for one in sequence.scored[first:last]], "refusal": None}
        return completion_logprobs(self.names, sequence, first=first, last=last)

    def _chunk(self, index: int, delta: Any, logprobs: Any, ended: Choice | None) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta" if self.chat else "text": delta,
            "logprobs": logprobs,
            "finish_reason": None if ended is None else ended.shown.finish_reason,
        }
        if ended is not None:
            choice["varlora"] = ended.facts
        return {**self._head(self._chunk_kind), "choices": [choice]}


def _prompts(asked: Asked, model: LanguageModel, settings: ServeSettings) -> list[list[int]]:
    if isinstance(asked, ChatRequest):
        messages = [message.plain() for message in asked.messages]
        for message in messages:
            check_unicode(message["content"], "messages")
        check_length(sum(len(message["content"]) for message in messages), "messages", settings.max_text_length)
        return [model.encode_chat(messages)]
    if not 1 <= len(asked.prompts) <= settings.max_rows:
        raise invalid("prompt", f"there are {len(asked.prompts)} prompts; allowed: 1 to {settings.max_rows}.")
    for prompt in asked.prompts:
        if isinstance(prompt, str):
            check_unicode(prompt, "prompt")
        check_length(len(prompt), "prompt", settings.max_text_length)
    return [model.encode(prompt) if isinstance(prompt, str) else prompt for prompt in asked.prompts]


def _most_tokens(asked: Asked, prompt: Sequence[int], model: LanguageModel, settings: ServeSettings) -> int:
    """The most new tokens: as asked; where a conversation does not say, as many as the server and the model allow."""
    most = asked.max_tokens
    if isinstance(asked, ChatRequest):
        most = most if most is not None else asked.max_completion_tokens
        if most is None:
            room = settings.max_tokens if model.context is None else model.context - len(prompt)
            return max(min(settings.max_tokens, room), 1)
    assert most is not None
    if most > settings.max_tokens:
        raise invalid("max_tokens", f"max_tokens is {most}; this server writes at most {settings.max_tokens}.")
    return most


def _event(content: Any) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
