"""A row's choices as token sequences, each the prompt with one choice's text behind it.

Prompt and text are tokenized together, as a model reads them; what is scored begins at the first token that the prompt
alone does not have there. Nearly always that is the token behind the prompt's last; where the two merge into one token,
it is that token. Spaces at a prompt's end are scored with the text, as tokenizers put them in front of words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from varlora.tasks.cutting import shorten
from varlora.tasks.tokens import shared_start, split_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class ChoiceSequences:
    """The sequences of one row's choices.

    Attributes:
        input_ids: Token ids of prompt and text, by choice.
        choice_lengths: How many of them, at the end, are the text.
        choice_bytes: Bytes of the text, without the space before it.
    """

    input_ids: list[list[int]]
    choice_lengths: list[int]
    choice_bytes: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.input_ids))


def choice_sequences(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, Any],
    continuations: Sequence[str],
    *,
    longest: int | None = None,
    side: Literal["left", "right"] = "left",
) -> ChoiceSequences:
    """Tokenize what is scored of a row.

    Args:
        tokenizer: The model's tokenizer.
        row: The row, as `Task` describes it; its `choices` are scored, or else as many of the continuations behind
            its prompt.
        continuations: The task's.
        longest: Most tokens in a sequence: prompts are cut, all to the room beside the longest text, so that every
            choice is behind the same words; None cuts none.
        side: The side on which they are cut.

    Raises:
        ValueError: If a text has no token of its own, or none before it; or what must stay of a prompt leaves no room.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "Answer:": 1, "a": 2, "cat": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
        >>> choice_sequences(tokenizer, {"prompt": "Answer:"}, [" cat", " a cat"])
        ChoiceSequences(input_ids=[[1, 3], [1, 2, 3]], choice_lengths=[1, 2], choice_bytes=[3, 5])
    """
    offered = continuations[: row.get("num_choices", len(continuations))]
    scored = row.get("choices") or [{"prompt": row["prompt"], "text": text} for text in offered]
    prompts = [choice["prompt"].rstrip() for choice in scored]
    different = list(dict.fromkeys(prompts))
    alone = dict(zip(different, (parts[:2] for parts in split_all(tokenizer, different)), strict=True))
    joined = [choice["prompt"] + choice["text"] for choice in scored]
    together = tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]  # at once: there may be hundreds
    starts, texts = [], []
    for prompt, choice, own in zip(prompts, scored, together, strict=True):
        before = alone[prompt][0]
        start, whole = [*before, *alone[prompt][1]], [*before, *own]
        shared = shared_start(start, whole)
        if shared in (0, len(whole)):
            raise ValueError(
                f"the choice {choice['text']!r} has no token {'before it' if shared < len(whole) else 'of its own'} "
                f"behind the prompt ending in {prompt[-20:]!r}; give the question words, and each choice a text that "
                "the tokenizer keeps"
            )
        starts.append(len(start) - shared)
        texts.append(whole[shared:])
    room = None if longest is None else longest - max(map(len, texts))
    sequences = []
    for prompt, merged, text in zip(prompts, starts, texts, strict=True):
        before, own = alone[prompt]
        if room is not None and len(before) + len(own) > room:
            own = shorten({**row, "prompt": prompt}, "prompt", tokenizer, room - len(before), side=side)
        kept = [*before, *own]
        sequences.append([*kept[: len(kept) - merged], *text])
    return ChoiceSequences(
        input_ids=sequences,
        choice_lengths=[len(text) for text in texts],
        choice_bytes=[len(choice["text"].removeprefix(" ").encode()) for choice in scored],
    )
