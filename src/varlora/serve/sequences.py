"""One text that is being written, and how its next token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from varlora.prediction.prediction_setup import nan_logits
from varlora.serve.text_stream import TextStream

LEAST = -9999.0
"""The log-probability that stands for that of an impossible token, since JSON has no infinity."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A token, and what the model thought of it at its place.

    Attributes:
        token: its number.
        log_prob: its log-probability, nats, of the model's own distribution: no temperature, no cut.
        top: the likeliest tokens there with theirs, the likeliest first.
    """

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest.
        top_p: only of the likeliest tokens that together have this probability.
        seed: of the draws of tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(eq=False, kw_only=True)
class TextSequence:
    """One text behind one prompt, under one set of weights.

    Attributes:
        prompt: its tokens.
        max_new_tokens: most tokens of the text; 0 only scores the prompt.
        sampling: how tokens are chosen.
        draw: which draw writes; None is the point.
        top: how many of the likeliest tokens of each place are wanted; None: no log-probability is.
        wanted: tokens whose log-probabilities are wanted at each place, likely or not.
        echo: whether the prompt's tokens are scored, too.
        stream: the text.
        ends: tokens that end it.
    """

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    draw: int | None
    top: int | None
    wanted: tuple[int, ...] = ()
    echo: bool
    stream: TextStream
    ends: frozenset[int]
    adapter: str = ""
    scored: list[Scored] = field(default_factory=list)
    scored_prompt: list[Scored | None] = field(default_factory=list)
    log_likelihood: float = 0.0
    finish_reason: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.sampling.seed) if self.sampling.temperature > 0 else None

    @property
    def log_likelihood_per_token(self) -> float | None:
        """Nats, over the text's tokens, its end included; None where it has none."""
        return self.log_likelihood / len(self.scored) if self.scored else None

    def add(self, scored: Scored) -> None:
        """The next token, which may end the text."""
        self.scored.append(scored)
        self.log_likelihood += scored.log_prob
        if scored.token in self.ends:
            self.stream.offsets.append(len(self.stream.text))
            self.finish_reason = "stop"
        else:
            self.stream.push(scored.token)
            if self.stream.stopped:
                self.finish_reason = "stop"
            elif len(self.scored) >= self.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            self.stream.end()


def choose_tokens(logits: Tensor, sequences: Sequence[TextSequence]) -> list[Scored]:
    """The next token of each text.

    Args:
        logits: (B, V).
        sequences: the B texts.

    Raises:
        ValueError: the model gives NaN.
    """
    logits = logits.float()
    total = logits.logsumexp(-1)
    if bool(total.isnan().any()):
        raise nan_logits()
    best = logits.argmax(-1)
    for row, sequence in enumerate(sequences):
        if sequence.generator is not None:
            best[row] = _sampled(logits[row], sequence.sampling, sequence.generator)
    chosen = logits.gather(1, best[:, None])[:, 0] - total
    return [
        Scored(token=token, log_prob=log_prob, top=likeliest(logits[row], sequence))
        for row, (token, log_prob, sequence) in enumerate(zip(best.tolist(), chosen.tolist(), sequences, strict=True))
    ]


def likeliest(logits: Tensor, sequence: TextSequence) -> tuple[tuple[int, float], ...]:
    """The tokens of one place (V,) whose log-probabilities a text is to come with."""
    if not sequence.top and not sequence.wanted:
        return ()
    log_probs = logits.double().log_softmax(-1)
    values, tokens = log_probs.topk(min(sequence.top or 0, len(log_probs)))
    found = dict(zip(tokens.tolist(), values.tolist(), strict=True))
    found |= {token: float(log_probs[token]) for token in sequence.wanted}
    return tuple((token, max(log_prob, LEAST)) for token, log_prob in found.items())


def _sampled(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    probs = (logits.double().cpu() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        values, tokens = probs.sort(descending=True)
        values[(values.cumsum(0) - values) >= sampling.top_p] = 0  # the likeliest is always kept
        return tokens[torch.multinomial(values, 1, generator=generator)][0]
    return torch.multinomial(probs, 1, generator=generator)[0]
