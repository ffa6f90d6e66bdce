"""The words around a row: what a causal LM and an encoder read.

Every prompt of a causal LM ends in a colon and its answer starts with a space, so that the answer's first
token is a word of its own in every tokenizer family.
"""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
YES_NO = ("no", "yes")


def choice_text(question: str, choices: Sequence[str]) -> str:
    """A question and its lettered choices, one a line.

    Example:
        >>> print(choice_text("Which one barks?", ["cat", "dog"]))
        Which one barks?
        A. cat
        B. dog
    """
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines])


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
