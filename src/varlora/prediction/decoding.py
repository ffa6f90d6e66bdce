"""Greedy decoding of one batch of prompts, by transformers' own `generate`.

    y_t = argmax_v p(v | x, y_<t),   until y_t ends the text or t = T

The model's generation configuration is set aside meanwhile, since transformers fills whatever one does not name from
it (a repetition penalty, say), and what is written would no longer be what the weights find likeliest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from varlora.adapters import unwrapped_model
from varlora.readout.answer_logits import answer_logits
from varlora.tasks import context_length

COMPARED_TOKENS = 16
CACHED_TOKENS = 16
"""Whose keys and values count as one token of a forward, where rows are taken together."""
_LOWEST = torch.finfo(torch.float64).min
"""In place of log 0, whose product with 0 is to be 0."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written after the B prompts of a batch.

    Attributes:
        texts: B texts, special tokens and what ends a text left out.
        num_tokens: (B,) int64, the end included.
        finished: (B,) bool, whether the text came to its end.
        log_likelihoods: (B,) float64, nats, summed over the tokens.
    """

    texts: list[str]
    num_tokens: Tensor
    finished: Tensor
    log_likelihoods: Tensor

    def rows(self) -> list[OneText]:
        """The texts one by one."""
        return [
            OneText(text=text, num_tokens=tokens, finished=finished, log_likelihood=log_likelihood)
            for text, tokens, finished, log_likelihood in zip(
                *(self.texts, self.num_tokens.tolist(), self.finished.tolist(), self.log_likelihoods.tolist()),
                strict=True,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class OneText:
    """One of them."""

    text: str
    num_tokens: int
    finished: bool
    log_likelihood: float


class Greedy:
    """Decodes batches with a model as it stands; draws, modes and the random state are the caller's.

    Args:
        model: A causal LM, wrapped or not.
        tokenizer: Its tokenizer.
        max_new_tokens: Most tokens of a text.

    Raises:
        ValueError: The model cannot generate, or a text would have no token.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; allowed: 1 or more")
        self.model, self.tokenizer, self.max_new_tokens = unwrapped_model(model), tokenizer, max_new_tokens
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        if not isinstance(base, PreTrainedModel) or not base.can_generate():
            raise ValueError(f"{type(base).__name__} cannot generate text; it needs a causal language model.")
        self.base = base
        self.context = context_length(base.config)
        self.ends = end_tokens(base, tokenizer)

    def check(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Whether batches can be decoded.

        Args:
            batches: `input_ids`, `attention_mask` of each.

        Raises:
            ValueError: One is not padded on the left, or a text would not fit behind its prompt.
        """
        for number, batch in enumerate(batches):
            mask: Tensor = batch["attention_mask"]
            if not bool(mask[:, -1].all()):
                raise ValueError(f"batch {number} is not padded on the left; texts are written behind the last token.")
            longest = int(mask.sum(1).max())
            if self.context is not None and longest + self.max_new_tokens > self.context:
                raise ValueError(
                    f"batch {number} has a prompt of {longest} tokens, behind which {self.max_new_tokens} new ones do "
                    f"not fit into the model's context of {self.context}; lower max_new_tokens or shorten the prompts."
                )

    def next_logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits (B, some) of a few tokens to come next, by which two ways to compute them can be compared."""
        return answer_logits(self.model, batch, range(min(COMPARED_TOKENS, self.base.config.vocab_size)))

    def size(self, batch: Mapping[str, Any]) -> int:
        """What a batch counts as, in tokens that go through the model at once: most of a text's go one by one."""
        rows, length = batch["input_ids"].shape
        return -(-int(rows) * (int(length) + self.max_new_tokens) // CACHED_TOKENS)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any], record: Record | None = None) -> Written:
        """Decode one batch that is on the model's device.

        Args:
            batch: `input_ids`, `attention_mask`.
            record: What the tokens are chosen by, and its log-probabilities; the model's own logits, unless given.
        """
        record = Record() if record is None else record
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self._pad(),
        )
        with _set_aside(self.base):
            whole = cast(Any, self.model).generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                generation_config=settings,
                logits_processor=LogitsProcessorList([record]),
            )
        tokens: Tensor = whole[:, batch["input_ids"].shape[1] :].cpu()
        steps = tokens.shape[1]
        log_probs = torch.stack(record.steps[:steps], 1).double().cpu()
        is_end = torch.isin(tokens, torch.tensor(sorted(self.ends), dtype=tokens.dtype))
        finished = is_end.any(1)
        counts = torch.where(finished, is_end.int().argmax(1) + 1, steps)
        counted = torch.arange(steps) < counts[:, None]
        return Written(
            texts=[
                self._text(row[:shown]) for row, shown in zip(tokens, (counts - finished.int()).tolist(), strict=True)
            ],
            num_tokens=counts,
            finished=finished,
            log_likelihoods=log_probs.where(counted, 0.0).sum(1),
        )

    def _text(self, tokens: Tensor) -> str:
        return str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _pad(self) -> int:
        """What fills a row that has ended while others go on; masked and cut off, so that any token will do."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else min(self.ends, default=0)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, and those that the model's generation configuration names.

    A chat model often has two, the end of a turn and the end of everything.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = [named] if isinstance(named, int) else list(named or ())
    return frozenset(int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None)


class Record(LogitsProcessor):
    """Changes nothing; keeps the log-probability of the likeliest token, which greedy decoding takes, of each step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores


class AverageOverDraws(Record):
    """Gives the rows of all draws the logarithm of their averaged probabilities: all write the same text.

        p(v) = (1/S) Σ_s p_s(v),   H = H[p],   I = H[p] − (1/S) Σ_s H[p_s]

    Args:
        draws: S; rows are B of the first draw, the same B of the second, ...
    """

    def __init__(self, draws: int) -> None:
        super().__init__()
        self.draws = draws
        self.entropies: list[Tensor] = []
        self.mutual_information: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        log_probs = scores.double().log_softmax(-1).view(self.draws, -1, scores.shape[-1])
        probs = log_probs.exp()
        mean = probs.mean(0)
        averaged = mean.log()
        entropy, of_draws = (
            -(p * log_p.clamp(min=_LOWEST)).sum(-1) for p, log_p in ((mean, averaged), (probs, log_probs))
        )
        self.entropies.append(entropy)
        self.mutual_information.append(entropy - of_draws.mean(0))
        self.steps.append(averaged.amax(-1).repeat(self.draws))
        return averaged.to(scores.dtype).repeat(self.draws, 1)


@contextmanager
def _set_aside(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model has no generation configuration of its own."""
    own = model.generation_config
    try:
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        yield
    finally:
        model.generation_config = own
