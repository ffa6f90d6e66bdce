"""A predictor whose model is elsewhere: K adapters of an export on an OpenAI-compatible server, averaged here.

    row ──► token ids ──► POST /completions for each adapter ──► log-probabilities of the answers ──► (N, K, C)

Rows are worded, tokenized and cut here, as in training, and sent as token ids. An answer of one token is asked for as
the next token's log-probability (`logprob_token_ids` of vLLM and of `varlora serve`; elsewhere it is looked for among
the likeliest), a choice that is scored as a text as the echoed prompt's. What a server does not tell is never taken for
0.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import Self

from varlora.io.words import counted
from varlora.posterior import PredictionConfig
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.predictor.client import Backend, Client, ServerError
from varlora.predictor.predictor import Predictor
from varlora.predictor.reader import SPLIT, RowReader
from varlora.readout.readout import AnswerTokens, ChoiceTexts, ClassHead, readout_from_dict
from varlora.runs.config import RunConfig
from varlora.runs.decision import Decision
from varlora.runs.export_folder import Export, read_export
from varlora.runs.folder import RunFolder
from varlora.runs.setting import scored_as
from varlora.tasks import encode
from varlora.tasks.encode import encode_prompts
from varlora.tasks.rows import Records

MOST_TOKEN_IDS = 128
"""Tokens that vLLM tells the log-probabilities of by their ids, in one request."""
MOST_PROMPTS = 32
"""Prompts of one request."""
NOT_TOLD = -9999.0
"""What some servers write for a log-probability that they do not tell."""
EXTENSIONS = ("logprob_token_ids", "return_tokens_as_token_ids")
"""Fields that are not OpenAI's."""


class RemotePredictor(Predictor):
    """A `Predictor` that asks a server; made by `Predictor.from_pretrained(folder, backend=...)`.

    Attributes:
        export: the manifest.
    """

    def __init__(
        self, *, run: RunFolder, export: Export, settings: RunConfig, backend: Backend, decision: Decision | None = None
    ) -> None:
        self.run, self.export, self._settings = run, export, settings
        self.config = PredictionConfig(
            mode=export.mode, samples=len(export.adapters) if export.mode == "samples" else None
        )
        self.reader = RowReader(run=run, config=settings)
        self._mode, self._logit_temperature = export.mode, export.logit_temperature
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(run.path))
        self.readout = readout_from_dict(export.readout) if export.readout is not None else None
        if isinstance(self.readout, ClassHead):
            raise ValueError(
                f"{run.path} is of an encoder with a class head, whose adapters no OpenAI-compatible server loads; its "
                "run's own folder answers by itself, or behind `varlora serve`."
            )
        self._client = Client(backend)
        self._plain = False
        self._limit = self._check_models()
        self.decision = decision
        if decision is not None:
            self._check(decision)

    @classmethod
    def connect(
        cls,
        folder: str | Path,
        backend: str | Backend,
        *,
        batch_size: int | None = None,
        truncation: str | None = None,
        max_new_tokens: int | None = None,
        decision: Decision | str | None = None,
    ) -> Self:
        """Reads an export's folder, and finds its adapters on a server.

        Args:
            folder: what `varlora export` wrote.
            backend: the server.
            batch_size: rows in a request; None: the run's own.
            truncation, max_new_tokens: as of `Predictor.from_pretrained`.
            decision: likewise; a text stands for the export's own.

        Raises:
            ValueError: the folder is no export of a run, the server cannot be asked, or lacks one of the adapters.
        """
        run, export = read_export(folder)
        given: dict[str, Any] = {
            "per_device_eval_batch_size": batch_size,
            "truncation": truncation,
            "max_new_tokens": max_new_tokens,
        }
        settings = dataclasses.replace(
            run.config, **{name: value for name, value in given.items() if value is not None}
        )
        backend = Backend(url=backend) if isinstance(backend, str) else backend
        if isinstance(decision, str):
            decision = None if export.decision is None else Decision.from_dict(export.decision)
        return cls(run=run, export=export, settings=settings, backend=backend, decision=decision)

    @property
    def num_draws(self) -> int:
        """How many adapters are averaged."""
        return len(self.export.adapters)

    @property
    def device(self) -> torch.device:
        """Where the numbers are; the model is the server's."""
        return torch.device("cpu")

    def to(self, device: str | torch.device) -> Self:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"the model is at {self._client.backend.url}, and is moved there alone.")

    def _check_models(self) -> int | None:
        """Whether the server knows every adapter; and the longest input it takes, where it says so."""
        cards = self._client.get("/models").get("data")
        if not isinstance(cards, list):
            raise ServerError(f"{self._client.backend.url}/models does not list models as OpenAI's API does.")
        known = {str(card.get("id")): card for card in cards if isinstance(card, dict)}
        if absent := [adapter.name for adapter in self.export.adapters if adapter.name not in known]:
            raise ServerError(
                f"{self._client.backend.url} lacks {', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}; it has "
                f"{', '.join(list(known)[:6]) or 'no model'}. A name is of its weights: start the server with the "
                f"command in {self.run.path / 'README.md'}."
            )
        limits = [card["max_model_len"] for card in known.values() if isinstance(card.get("max_model_len"), int)]
        return min(limits) if limits else None

    def _predict(self, records: Records) -> Prediction:
        task = scored_as(self.reader.read(records), self.readout)
        limits = [limit for limit in (self._settings.max_length, self._limit and self._limit - 1) if limit]
        encoded = encode(
            task, SPLIT, self.tokenizer, min(limits) if limits else None, truncation=self._settings.truncation
        )
        scores = self._choice_scores(encoded) if isinstance(self.readout, ChoiceTexts) else self._token_scores(encoded)
        assert isinstance(self.readout, (AnswerTokens, ChoiceTexts))
        classes = torch.arange(self.readout.num_classes)
        offered = classes < torch.tensor(encoded["num_choices"][:])[:, None]
        scores = (scores / self.export.logit_temperature).masked_fill(~offered[:, None], -torch.inf)
        return Prediction(
            log_probs=torch.log_softmax(scores, dim=-1),
            labels=torch.tensor(encoded["labels"][:], dtype=torch.int64),
            classes=self.readout.answers,
            ids=tuple(map(str, encoded["id"])),
            mode=self.export.mode,
            seed=self.export.seed,
            logit_temperature=self.export.logit_temperature,
        )

    def _token_scores(self, encoded: datasets.Dataset) -> Tensor:
        """Log-probabilities (N, K, C) of the answers' tokens behind each prompt."""
        assert isinstance(self.readout, AnswerTokens)
        prompts, tokens = encoded["input_ids"][:], list(self.readout.token_ids)
        if not self._plain:
            try:
                parts = [tokens[at : at + MOST_TOKEN_IDS] for at in range(0, len(tokens), MOST_TOKEN_IDS)]
                found = [self._next_token(prompts, part, by_id=True)[0] for part in parts]
            except ServerError as error:
                if error.status not in (400, 422) or not any(name in str(error) for name in EXTENSIONS):
                    raise
                self._plain = True
            else:
                merged = torch.cat(found, dim=-1)
                if not bool(merged.isnan().any()):
                    return merged
                self._plain = True  # an older server, which takes the field and does not know it
        scores, least = self._next_token(prompts, tokens, by_id=False)
        if bool((absent := scores.isnan()).any()):
            row, adapter, label = absent.nonzero()[0].tolist()
            bound = float(least[row, adapter])
            raise ServerError(
                f"row {encoded['id'][row]!r}: {self.export.adapters[adapter].name} does not tell the log-probability "
                f"of {self.readout.answers[label]!r} (token {tokens[label]}): it is below {bound:.3g}, "
                f"the least of the {self._client.backend.top_logprobs} likeliest, and no more is known of it. Ask for "
                "more (Backend(..., top_logprobs=200)), which vLLM allows with --max-logprobs 200, or use a server "
                "that takes logprob_token_ids: a recent vLLM, or `varlora serve`."
            )
        return scores

    def _next_token(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], *, by_id: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, K, C) of some tokens to come next, NaN where the server tells none; and its least."""
        wanted = {token: index for index, token in enumerate(tokens)}
        body: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": self._client.backend.top_logprobs}
        if by_id:
            body |= {"logprobs": len(tokens), "logprob_token_ids": list(tokens), "return_tokens_as_token_ids": True}
        scores = torch.full((len(prompts), self.num_draws, len(tokens)), torch.nan, dtype=torch.float64)
        least = torch.zeros(scores.shape[:2], dtype=torch.float64)
        for row, adapter, choice in self._completions(prompts, body):
            top = _logprobs(choice).get("top_logprobs")
            if not isinstance(top, list) or not top or not isinstance(top[0], dict):
                raise ServerError("the server tells no log-probabilities (choices[].logprobs.top_logprobs).")
            for name, value in top[0].items():
                token = self._token_of(name)
                index = None if token is None else wanted.get(token)
                if value is not None and value > NOT_TOLD:
                    least[row, adapter] = min(least[row, adapter].item(), value)
                    if index is not None:
                        scores[row, adapter, index] = value
        return scores, least

    def _choice_scores(self, encoded: datasets.Dataset) -> Tensor:
        """Log-likelihoods (N, K, C) of the choices' texts, as the server scores the echoed prompt."""
        assert isinstance(self.readout, ChoiceTexts)
        places = [(row, label) for row, ids in enumerate(encoded["input_ids"]) for label in range(len(ids))]
        sequences = [encoded["input_ids"][row][label] for row, label in places]
        shape = (len(encoded), self.num_draws, self.readout.num_classes)
        scores = torch.full(shape, -torch.inf, dtype=torch.float64)
        for number, adapter, choice in self._completions(
            sequences, {"max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        ):
            row, label = places[number]
            length, total = encoded["choice_lengths"][row][label], len(sequences[number])
            told = (_logprobs(choice).get("token_logprobs") or [])[:total][total - length :]
            if len(told) < length or any(value is None or value <= NOT_TOLD for value in told):
                raise ServerError(
                    f"row {encoded['id'][row]!r}: the server does not score the text of choice {label + 1}, which "
                    "takes `echo` with `logprobs` at /v1/completions (vLLM, `varlora serve`)."
                )
            scores[row, adapter, label] = math.fsum(told)
            if self.readout.length_normalization == "bytes":
                scores[row, adapter, label] /= max(1, encoded["choice_bytes"][row][label])
        return scores

    def _generate(self, records: Records) -> Generations:
        task, most = self.reader.read(records), self._settings.max_new_tokens
        room = None if self._limit is None else self._limit - most
        if room is not None and room < 1:
            raise ValueError(f"max_new_tokens is {most}, and the server has room for {self._limit} tokens; lower it.")
        limits = [limit for limit in (self._settings.max_length, room) if limit]
        encoded = encode_prompts(
            task, SPLIT, self.tokenizer, min(limits) if limits else None, truncation=self._settings.truncation
        )
        texts = [[""] * self.num_draws for _ in range(len(encoded))]
        shape = (len(encoded), self.num_draws)
        lengths, likelihoods = torch.ones(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.float64)
        finished = torch.zeros(shape, dtype=torch.bool)
        body = {"max_tokens": most, "temperature": 0, "logprobs": 1}
        for row, adapter, choice in self._completions(encoded["input_ids"][:], body):
            told = [value for value in _logprobs(choice).get("token_logprobs") or [] if value is not None]
            texts[row][adapter] = str(choice.get("text", ""))
            lengths[row, adapter], likelihoods[row, adapter] = max(1, len(told)), math.fsum(told)
            finished[row, adapter] = choice.get("finish_reason") == "stop"
        return Generations(
            texts=tuple(map(tuple, texts)),
            num_tokens=lengths,
            log_likelihoods=likelihoods,
            finished=finished,
            ids=tuple(map(str, encoded["id"])),
            final_answer=task.final_answer or "text",
            max_new_tokens=most,
            mode=self.export.mode,
            seed=self.export.seed,
        )

    def _completions(
        self, prompts: Sequence[Sequence[int]], body: Mapping[str, Any]
    ) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
        """The choices of every prompt under every adapter: number of the prompt, of the adapter, choice."""
        size = min(self._settings.per_device_eval_batch_size, MOST_PROMPTS)
        places = [(first, adapter) for first in range(0, len(prompts), size) for adapter in range(self.num_draws)]
        bodies = [
            {"model": self.export.adapters[adapter].name, "prompt": list(prompts[first : first + size]), **body}
            for first, adapter in places
        ]
        for (first, adapter), asked, answer in zip(
            places, bodies, self._client.post_all("/completions", bodies), strict=True
        ):
            choices, expected = answer.get("choices"), len(asked["prompt"])
            if not isinstance(choices, list) or {c.get("index") for c in choices} != set(range(expected)):
                raise ServerError(f"the server was asked {counted(expected, 'prompt')}, and does not answer each once.")
            for choice in choices:
                yield first + choice["index"], adapter, choice

    def _token_of(self, name: str) -> int | None:
        """The answer's token that a server has named: by its id, or by its text, if that is no other's."""
        if name.startswith("token_id:"):
            return int(name.removeprefix("token_id:"))
        token = self._answers_by_text.get(name)
        if token is not None and self._texts[name] > 1:
            raise ServerError(
                f"the server names tokens by their texts, and {counted(self._texts[name], 'token')} of "
                f"{self.export.base_model} have the text {name!r}. Use a server that takes return_tokens_as_token_ids: "
                "vLLM, or `varlora serve`."
            )
        return token

    @cached_property
    def _answers_by_text(self) -> dict[str, int]:
        assert isinstance(self.readout, AnswerTokens)
        return {str(self.tokenizer.decode([token])): token for token in self.readout.token_ids}

    @cached_property
    def _texts(self) -> Counter[str]:
        """How many tokens have a text."""
        return Counter(self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))]))


def _logprobs(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    found = choice.get("logprobs")
    return found if isinstance(found, dict) else {}
