"""The adapters of an export on an OpenAI-compatible server: what each of them says to token ids.

An answer of one token is asked for as the next token's log-probability (`logprob_token_ids` of vLLM and of
`varlora serve`; elsewhere it is looked for among the likeliest), a text as the echoed prompt's. What a server does not
tell is never taken for 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from varlora.io.words import counted
from varlora.predictor.client import Backend, Client, ServerError
from varlora.runs.export_text import MOST_TOKEN_IDS

MOST_PROMPTS = 32
"""Prompts of one request."""
NOT_TOLD = -9999.0
"""What some servers write for a log-probability that they do not tell."""
EXTENSIONS = ("logprob_token_ids", "return_tokens_as_token_ids")
"""Fields that are not OpenAI's."""


class ServedAdapters:
    """K adapters of one base model on a server.

    Attributes:
        backend: the server.
        names: of the adapters there.
        max_model_len: tokens of the longest input that the server takes, what it writes included; None if it does not
            say so.

    Args:
        backend: the server.
        names: of the adapters.
        tokenizer: of the base model.
        batch_size: prompts in a request.

    Raises:
        ServerError: the server cannot be asked, or lacks an adapter.
    """

    def __init__(
        self, backend: Backend, names: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, batch_size: int
    ) -> None:
        self.backend, self.names = backend, tuple(names)
        self._client, self._tokenizer, self._size = Client(backend), tokenizer, min(batch_size, MOST_PROMPTS)
        self._plain = False
        self.max_model_len = self._check_models()

    def next_tokens(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], *, ids: Sequence[str]) -> Tensor:
        """Log-probabilities (N, K, C) of some tokens to come next.

        Args:
            prompts: N, in token ids.
            tokens: C.
            ids: of the prompts, for an error.

        Raises:
            ServerError: the server does not tell one of them.
        """
        if not self._plain:
            try:
                parts = [tokens[at : at + MOST_TOKEN_IDS] for at in range(0, len(tokens), MOST_TOKEN_IDS)]
                logprobs = [self._next_tokens(prompts, part, by_id=True)[0] for part in parts]
            except ServerError as error:
                if error.status not in (400, 422) or not any(name in str(error) for name in EXTENSIONS):
                    raise
                self._plain = True
            else:
                merged = torch.cat(logprobs, dim=-1)
                if not bool(merged.isnan().any()):
                    return merged
                self._plain = True  # an older server, which takes the field and does not know it
        scores, least = self._next_tokens(prompts, tokens, by_id=False)
        if bool((absent := scores.isnan()).any()):
            row, adapter, label = absent.nonzero()[0].tolist()
            raise ServerError(
                f"row {ids[row]!r}: {self.names[adapter]} does not tell the log-probability of "
                f"{self._tokenizer.decode([tokens[label]])!r} (token {tokens[label]}): it is below "
                f"{float(least[row, adapter]):.3g}, the least of the {self.backend.top_logprobs} likeliest, and no "
                "more is known of it. Ask for more (Backend(..., top_logprobs=200)), which vLLM allows with "
                "--max-logprobs 200, or use a server that takes logprob_token_ids: a recent vLLM, or `varlora serve`."
            )
        return scores

    def text_likelihoods(
        self, sequences: Sequence[Sequence[int]], lengths: Sequence[int], *, ids: Sequence[str]
    ) -> Tensor:
        """Log-likelihoods (M, K) of the ends of sequences, as the server scores the echoed prompt.

        Args:
            sequences: M, in token ids.
            lengths: tokens of their ends.
            ids: of the sequences, for an error.

        Raises:
            ServerError: the server does not tell one.
        """
        scores = torch.zeros((len(sequences), len(self.names)), dtype=torch.float64)
        body = {"max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        for number, adapter, choice in self.completions(sequences, body):
            length, total = lengths[number], len(sequences[number])
            log_probs = (logprobs_of(choice).get("token_logprobs") or [])[:total][total - length :]
            if len(log_probs) < length or any(value is None or value <= NOT_TOLD for value in log_probs):
                raise ServerError(
                    f"row {ids[number]!r}: the server does not score the text of a choice, which takes `echo` with "
                    "`logprobs` at /v1/completions (vLLM, `varlora serve`)."
                )
            scores[number, adapter] = math.fsum(log_probs)
        return scores

    def completions(
        self, prompts: Sequence[Sequence[int]], body: Mapping[str, Any]
    ) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
        """The choices of every prompt under every adapter: number of the prompt, of the adapter, choice."""
        firsts = range(0, len(prompts), self._size)
        places = [(first, adapter) for first in firsts for adapter in range(len(self.names))]
        bodies = [
            {"model": self.names[adapter], "prompt": list(prompts[first : first + self._size]), **body}
            for first, adapter in places
        ]
        for (first, adapter), request, answer in zip(
            places, bodies, self._client.post_all("/completions", bodies), strict=True
        ):
            choices, expected = answer.get("choices"), len(request["prompt"])
            if not isinstance(choices, list) or {c.get("index") for c in choices} != set(range(expected)):
                raise ServerError(f"the server was asked {counted(expected, 'prompt')}, and does not answer each once.")
            for choice in choices:
                yield first + choice["index"], adapter, choice

    def _check_models(self) -> int | None:
        """Whether the server knows every adapter; and the longest input it takes, where it says so."""
        cards = self._client.get("/models").get("data")
        if not isinstance(cards, list):
            raise ServerError(f"{self.backend.url}/models does not list models as OpenAI's API does.")
        known = {str(card.get("id")): card for card in cards if isinstance(card, dict)}
        if absent := [name for name in self.names if name not in known]:
            raise ServerError(
                f"{self.backend.url} lacks {', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}; it has "
                f"{', '.join(list(known)[:6]) or 'no model'}. A name is of its weights: start the server with the "
                "command in the export's README.md."
            )
        limits = [card["max_model_len"] for card in known.values() if isinstance(card.get("max_model_len"), int)]
        return min(limits) if limits else None

    def _next_tokens(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], *, by_id: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, K, C) of some tokens to come next, NaN where the server tells none; and its least."""
        wanted = {token: index for index, token in enumerate(tokens)}
        texts = {str(self._tokenizer.decode([token])): token for token in tokens}
        body: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": self.backend.top_logprobs}
        if by_id:
            body |= {"logprobs": len(tokens), "logprob_token_ids": list(tokens), "return_tokens_as_token_ids": True}
        scores = torch.full((len(prompts), len(self.names), len(tokens)), torch.nan, dtype=torch.float64)
        least = torch.zeros(scores.shape[:2], dtype=torch.float64)
        for row, adapter, choice in self.completions(prompts, body):
            top = logprobs_of(choice).get("top_logprobs")
            if not isinstance(top, list) or not top or not isinstance(top[0], dict):
                raise ServerError("the server tells no log-probabilities (choices[].logprobs.top_logprobs).")
            for name, value in top[0].items():
                token = self._token_of(name, texts)
                index = None if token is None else wanted.get(token)
                if value is not None and value > NOT_TOLD:
                    least[row, adapter] = min(least[row, adapter].item(), value)
                    if index is not None:
                        scores[row, adapter, index] = value
        return scores, least

    def _token_of(self, name: str, answers: Mapping[str, int]) -> int | None:
        """The answer's token that a server has named: by its id, or by its text, if that is no other's."""
        if name.startswith("token_id:"):
            return int(name.removeprefix("token_id:"))
        token = answers.get(name)
        if token is not None and self._texts[name] > 1:
            raise ServerError(
                f"the server names tokens by their texts, and {counted(self._texts[name], 'token')} of "
                f"its model have the text {name!r}. Use a server that takes return_tokens_as_token_ids: "
                "vLLM, or `varlora serve`."
            )
        return token

    @cached_property
    def _texts(self) -> Counter[str]:
        """How many tokens have a text."""
        return Counter(self._tokenizer.batch_decode([[token] for token in range(len(self._tokenizer))]))


def logprobs_of(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a choice tells of its tokens' log-probabilities; empty where it tells nothing."""
    logprobs = choice.get("logprobs")
    return logprobs if isinstance(logprobs, dict) else {}
