"""Prompts and answers as tokens: which token really follows a prompt.

"A" and " A" are different tokens, some tokenizers put a BOS in front and some an EOS behind, and a
SentencePiece tokenizer cuts " A" differently at the start of a text. So nothing is assumed: the prompt is
tokenized alone and with the answer behind it, and the first token that is new is the answer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTEAD = (
    " (label_names_file names the classes in words of yours), answer by letters (label_answers='letters'), score whole "
    "names (prompt_style='cloze'), or read a classification head (model_class='encoder')"
)
"""What can be done where a causal LM cannot answer by the classes' names."""
AT_ONCE = 1000
"""Texts that are tokenized, and rows that are read, by one call."""


class SharedTokenError(ValueError):
    """Two answers begin with one token, which therefore cannot tell them apart."""


def split_special(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int], list[int]]:
    """Tokenize a text and tell its own tokens from those the tokenizer puts around it.

    A text that already starts with the BOS token, as a chat template writes it, gets no second one.

    Returns:
        Token ids before the text (e.g. BOS), of the text, and after it (e.g. EOS).

    Raises:
        ValueError: If the tokenizer cuts the text differently when it adds its special tokens.
    """
    return next(split_all(tokenizer, [text]))


def split_all(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """`split_special` of each of some texts, which are tokenized many at a time: a text alone takes ten times as long.

    Raises:
        ValueError: As `split_special`.
    """
    left, bos = iter(texts), str(tokenizer.bos_token or "")
    while some := list(islice(left, AT_ONCE)):
        bare = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        dressed = tokenizer(some, verbose=False)["input_ids"]
        for text, own, whole in zip(some, map(list, bare), map(list, dressed), strict=True):
            yield ([], own, []) if bos and text.startswith(bos) else _around(tokenizer, text, own, whole)


def _around(
    tokenizer: PreTrainedTokenizerBase, text: str, own: list[int], whole: list[int]
) -> tuple[list[int], list[int], list[int]]:
    for start in range(len(whole) - len(own) + 1):
        if whole[start : start + len(own)] == own:
            return whole[:start], own, whole[start + len(own) :]
    raise ValueError(
        f"the tokenizer {tokenizer.name_or_path!r} cuts a text differently when it adds special tokens: {text[:60]!r}"
    )


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt as a causal LM reads it: with BOS where the tokenizer adds one, never an EOS."""
    before, own, _ = split_special(tokenizer, prompt)
    return before + own


def shared_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their start.

    Example:
        >>> shared_start([1, 2, 3], [1, 2, 4, 5])
        2
    """
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def continuation_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, continuation: str) -> list[int]:
    """Token ids that follow the prompt's when the continuation is written behind it.

    Raises:
        ValueError: If the prompt's own tokens change when the continuation is appended.
    """
    (tokens,) = _continuations(tokenizer, [prompt], continuation)
    return tokens


def _continuations(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], continuation: str
) -> Iterator[list[int]]:
    """`continuation_tokens` behind each of some prompts."""
    alone = split_all(tokenizer, prompts)
    joined = split_all(tokenizer, (prompt + continuation for prompt in prompts))
    for prompt, (before, own, _), (before_both, own_both, _) in zip(prompts, alone, joined, strict=True):
        start, both = [*before, *own], [*before_both, *own_both]
        if both[: len(start)] != start or len(both) == len(start):
            hint = (
                "move the space at the end of the prompt to the start of the answer"
                if prompt[-1:].isspace() and prompt[-1:] != "\n"
                else "start the answer with a space, or end the prompt with a line break"
            )
            raise ValueError(
                f"the tokens of the prompt ending in {prompt[-20:]!r} change when {continuation[:20]!r} follows, "
                f"so the answer has no first token of its own; {hint}"
            )
        yield both[len(start) :]


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> tuple[int, ...]:
    """The token that follows the prompts for each answer, verified on every given prompt.

    An answer of several tokens is known by its first one.

    Args:
        tokenizer: The model's tokenizer.
        prompts: Some real prompts of the task.
        answers: What is written after a prompt, spaces included: " A", " B", ...

    Returns:
        One token id per answer, all different.

    Raises:
        SharedTokenError: If two answers start with the same token (naming both and the token).
        ValueError: If an answer's token is the unknown token, it depends on the prompt, or a prompt's tokens change
            when it is appended.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "Answer:": 1, "A": 2, "B": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
        >>> answer_tokens(tokenizer, ["Answer:"], [" A", " B"])
        (2, 3)
    """
    if not prompts:
        raise ValueError("no prompt was given; the answers' tokens are read off real prompts")
    tokens: list[int] = []
    for answer in answers:
        behind = zip(_continuations(tokenizer, prompts, answer), prompts, strict=True)
        first_tokens = {found[0]: prompt for found, prompt in behind}
        if len(first_tokens) > 1:
            ends = ", ".join(f"{_show(tokenizer, t)} after {p[-20:]!r}" for t, p in first_tokens.items())
            raise ValueError(f"the answer {answer!r} starts with different tokens: {ends}; end all prompts alike")
        (token,) = first_tokens
        if token == tokenizer.unk_token_id:
            raise ValueError(
                f"the answer {answer!r} starts with the unknown token {_show(tokenizer, token)}; choose answers that "
                f"the tokenizer knows{INSTEAD}"
            )
        if token in tokens:
            other = answers[tokens.index(token)]
            raise SharedTokenError(
                f"the answers {other!r} and {answer!r} both start with the token {_show(tokenizer, token)}; "
                f"choose answers whose first tokens differ{INSTEAD}"
            )
        tokens.append(token)
    return tuple(tokens)


def _show(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})"
