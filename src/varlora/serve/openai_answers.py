"""What the endpoints that are OpenAI's answer, and our field in it.

`varlora` stands beside the text of each choice:

    samples                    how many draws have written; 0: the mean has, in one pass
    log_likelihood_per_token   nats, of the text shown under the weights that wrote it, its end included
    finished                   whether the text came to its end
    answer, agreement          what most draws answer, and their share
    answers                    all answers with their shares, the most frequent first
    entropy                    nats, of these shares
    mutual_information         the same where the weights alone decide the text (temperature 0): what knowing them
                               would tell about the answer
    seed                       of the draws of tokens, at a temperature above 0
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from varlora.metrics import majority
from varlora.serve.language_model import LanguageModel
from varlora.serve.sequences import Scored, TextSequence


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One text of an answer.

    Attributes:
        shown: the text that is shown: of several draws, that of the first which gives the answer.
        draws: the texts of all of them.
        facts: our field.
    """

    shown: TextSequence
    draws: Sequence[TextSequence]
    facts: Mapping[str, Any]


def choice_of(model: LanguageModel, draws: Sequence[TextSequence], *, samples: int) -> Choice:
    """What the draws of one text come to."""
    answers = [model.read_answer(draw.stream.text) for draw in draws]
    winners, shares = majority([answers])
    shown = draws[answers.index(winners[0])] if winners[0] is not None else draws[0]
    facts: dict[str, Any] = {
        "samples": samples,
        "log_likelihood_per_token": shown.log_likelihood_per_token,
        "finished": shown.finish_reason == "stop",
    }
    if shown.sampling.temperature > 0:
        facts["seed"] = draws[0].sampling.seed
    if samples:
        votes = Counter(answer for answer in answers if answer is not None)
        facts |= {
            "answer": winners[0],
            "agreement": float(shares[0]),
            "answers": [{"answer": one, "share": count / len(draws)} for one, count in votes.most_common()],
            "entropy": _entropy([*votes.values(), *([1] * (len(draws) - votes.total()))], len(draws)),
        }
        if shown.sampling.temperature == 0:
            facts["mutual_information"] = facts["entropy"]
    return Choice(shown=shown, draws=draws, facts=facts)


def usage(prompts: Sequence[Sequence[int]], choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens that were read and written, those of all draws."""
    read = sum(map(len, prompts))
    written = sum(len(draw.scored) for choice in choices for draw in choice.draws)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


@dataclass(frozen=True, kw_only=True)
class TokenNames:
    """How tokens are written in an answer.

    Attributes:
        tokenizer: the model's.
        as_ids: whether as "token_id:17", which no two tokens share, in place of their text.
    """

    tokenizer: PreTrainedTokenizerBase
    as_ids: bool

    def of(self, token: int) -> str:
        """One token's."""
        if self.as_ids:
            return f"token_id:{token}"
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def by_text(self, scored: Scored) -> dict[str, float]:
        """The likeliest tokens of a place; of those with one text, the likeliest."""
        found: dict[str, float] = {}
        for token, log_prob in (*scored.top, (scored.token, scored.log_prob)):
            found.setdefault(self.of(token), log_prob)
        return found

    def in_chat(self, scored: Scored) -> dict[str, Any]:
        """A token in the form of a chat completion."""
        return {
            **self._with_bytes(scored.token, scored.log_prob),
            "top_logprobs": [self._with_bytes(token, log_prob) for token, log_prob in scored.top],
        }

    def _with_bytes(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self.of(token)
        raw = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": log_prob, "bytes": raw}


def visible_tokens(sequence: TextSequence) -> int:
    """How many tokens have begun before a stop string cut the text."""
    if not sequence.stream.stopped:
        return len(sequence.scored)
    return sum(offset < len(sequence.stream.text) for offset in sequence.stream.offsets)


def completion_logprobs(
    names: TokenNames, sequence: TextSequence, *, first: int = 0, last: int | None = None, before: int = 0
) -> dict[str, Any] | None:
    """Log-probabilities in the form of a completion.

    Args:
        names: how tokens are written.
        sequence: the text.
        first, last: which tokens; all unless given.
        before: characters that stand before the text in what is shown.
    """
    if sequence.top is None:
        return None
    scored = sequence.scored[first : visible_tokens(sequence) if last is None else last]
    offsets = sequence.stream.offsets[first:][: len(scored)]
    prompt: list[Scored | None] = list(sequence.scored_prompt)
    texts = [names.of(token) for token in sequence.prompt] if sequence.echo else []
    wants_top = bool(sequence.top or sequence.wanted)
    return {
        "tokens": [*texts, *(names.of(one.token) for one in scored)],
        "token_logprobs": [one.log_prob if one is not None else None for one in (*prompt, *scored)],
        "top_logprobs": [names.by_text(one) if one is not None else None for one in (*prompt, *scored)]
        if wants_top
        else None,
        "text_offset": [*_starts(texts), *(before + offset for offset in offsets)],
    }


def _starts(texts: Sequence[str]) -> list[int]:
    starts, at = [], 0
    for text in texts:
        starts.append(at)
        at += len(text)
    return starts


def _entropy(counts: Sequence[int], total: int) -> float:
    return sum(-count / total * math.log(count / total) for count in counts) + 0.0
