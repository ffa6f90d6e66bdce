"""The words around a row: what a causal LM and an encoder read.

Every prompt of a causal LM ends in a colon and its answer starts with a space, so that the answer's first
token is a word of its own in every tokenizer family.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, product

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
YES_NO = ("no", "yes")
MARK = "\ue000"
"""Stands where a text will stand, to find its place in a prompt; a character that no text has."""


def span_of(marked: str, whole: str) -> tuple[int, int] | None:
    """Where a text stands in a prompt, in characters.

    Args:
        marked: The prompt with `MARK` in the text's place.
        whole: The prompt.

    Returns:
        Start and end (exclusive); None if the two prompts differ in more than the text.

    Example:
        >>> span_of(label_prompt(MARK, ["good", "bad"]), label_prompt("a fine film", ["good", "bad"]))
        (0, 11)
    """
    before, mark, after = marked.partition(MARK)
    start, end = len(before), len(whole) - len(after)
    if not mark or start > end or whole[:start] != before or whole[end:] != after:
        return None
    return start, end


def letters(count: int) -> tuple[str, ...]:
    """What names so many choices: A to Z, or two letters each where there are more than 26.

    Raises:
        ValueError: If there are more than 676.

    Example:
        >>> letters(3), letters(30)[:2], letters(30)[-1]
        (('A', 'B', 'C'), ('AA', 'AB'), 'BD')
    """
    if count <= len(LETTERS):
        return tuple(LETTERS[:count])
    if count > len(LETTERS) ** 2:
        raise ValueError(f"letters, two each, can answer for at most {len(LETTERS) ** 2} classes, got {count}")
    return tuple(first + second for first, second in islice(product(LETTERS, repeat=2), count))


def choice_text(question: str, choices: Sequence[str]) -> str:
    """A question and its lettered choices, one a line.

    Example:
        >>> print(choice_text("Which one barks?", ["cat", "dog"]))
        Which one barks?
        A. cat
        B. dog
    """
    return f"{question}\n{lettered(choices)}"


def lettered(choices: Sequence[str]) -> str:
    """Choices with their letters, one a line."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters(len(choices)), choices, strict=True))


def choice_prompt(question: str, choices: Sequence[str]) -> str:
    """A lettered question for a causal LM; the answer is " A", " B", ...

    Example:
        >>> choice_prompt("Which one barks?", ["cat", "dog"])
        'Which one barks?\\nA. cat\\nB. dog\\nAnswer:'
    """
    return f"{choice_text(question, choices)}\nAnswer:"


def label_prompt(text: str, names: Sequence[str] = ()) -> str:
    """A text to classify by a causal LM; the answer is " " + the class name.

    Args:
        text: The text.
        names: Class names to list before the answer; empty lists none.

    Example:
        >>> label_prompt("a fine film", ["negative", "positive"])
        'a fine film\\nLabels: negative, positive\\nLabel:'
    """
    listed = f"\nLabels: {', '.join(names)}" if names else ""
    return f"{text}{listed}\nLabel:"


def yes_no_text(passage: str, question: str) -> str:
    """A passage and a question about it.

    Example:
        >>> yes_no_text("Crows are birds.", "do crows fly")
        'Crows are birds.\\nQuestion: do crows fly'
    """
    return f"{passage}\nQuestion: {question}"


def yes_no_prompt(passage: str, question: str) -> str:
    """A passage and a question for a causal LM; the answer is " no" or " yes".

    Example:
        >>> yes_no_prompt("Crows are birds.", "do crows fly")
        'Crows are birds.\\nQuestion: do crows fly\\nAnswer:'
    """
    return f"{yes_no_text(passage, question)}\nAnswer:"
