"""Rows that are too long: what may be cut, and what stays.

Of a worded row (a text to classify, a question, a passage) only the text is cut: the instruction, the choices or class
names and the cue that the answer follows stay. Of a conversation the oldest turns go first, whole; the system turn and
the last header stay, and if the last message alone is too long, its text is cut. Of a prompt of the user's own, any
part may be cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from varlora.tasks.chat import last_content, render_prompt, shorter_conversations
from varlora.tasks.rows import read_conversation
from varlora.tasks.tokens import shared_start, split_special

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shorten(
    row: Mapping[str, Any],
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    room: int,
    *,
    side: Literal["left", "right"],
) -> list[int]:
    """The token ids of a row's prompt or text, cut to so many.

    Args:
        row: The row, as `Task` describes it.
        column: "prompt" or "text".
        tokenizer: The model's tokenizer.
        room: Most tokens, without the special ones that the tokenizer puts around.
        side: The side on which the text is cut.

    Raises:
        ValueError: If the rest of the row leaves no room for the text.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "a": 1, "fine": 2, "film": 3, "Label:": 4}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
        >>> row = {"prompt": "a fine film\\nLabel:", "prompt_span": [0, 11]}
        >>> shorten(row, "prompt", tokenizer, 3, side="right")
        [1, 2, 4]
    """
    text, span = row[column], row.get(f"{column}_span")
    if row.get("conversation"):
        messages, tools = read_conversation(row["conversation"])
        for shorter in shorter_conversations(messages):
            messages = shorter
            text = render_prompt(messages, tokenizer, "the conversation without its oldest turns", tools=tools)
            own = split_special(tokenizer, text)[1]
            if len(own) <= room:
                return own
        span = last_content(messages, tokenizer, "the last message alone", tools=tools) or (0, 0)
    own = split_special(tokenizer, text)[1]
    inside = _tokens_in(tokenizer, text, own, span or (0, len(text)))
    excess = len(own) - room
    if excess >= len(inside):
        raise ValueError(
            f"what stays whole (instruction, choices, cue, system turn) has {len(own) - len(inside)} tokens, which "
            f"leaves none of the {max(room, 0)} for the text"
        )
    gone = set(inside[:excess] if side == "left" else inside[-excess:])
    return [token for i, token in enumerate(own) if i not in gone]


def _tokens_in(tokenizer: PreTrainedTokenizerBase, text: str, own: Sequence[int], span: Sequence[int]) -> list[int]:
    """Positions of the tokens that lie within a span of characters and reach into nothing else."""
    start, end = span
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        return [i for i, (first, last) in enumerate(encoded["offset_mapping"]) if start <= first < last <= end]
    head = tokenizer(text[:start], add_special_tokens=False, verbose=False)["input_ids"] if start else []
    tail = tokenizer(text[end:], add_special_tokens=False, verbose=False)["input_ids"] if end < len(text) else []
    before, after = shared_start(head, own), shared_start(tail[::-1], own[::-1])
    return list(range(before, len(own) - after))
