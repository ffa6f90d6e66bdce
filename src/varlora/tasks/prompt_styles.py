"""Prompt styles: how published works word the same questions, by name.

"varlora" is ours. The others are written from what their authors published (paper and code), so that a published number
can be set beside one of ours on the same words; what is known to differ is said with each. A style words questions with
choices and yes/no questions; texts to classify and completions have no published wording here.

"cloze" has no letters: each choice's whole text is scored behind the question (`varlora.readout.readout.ChoiceTexts`),
worded as lm-evaluation-harness words these tasks. So can the names of classes be, behind our own wording of a text.

Source: Gao et al., "The Language Model Evaluation Harness", doi:10.5281/zenodo.5371628 (tasks arc_easy, openbookqa,
winogrande, boolq); Yang et al. 2023, "Bayesian Low-rank Adaptation for Large Language Models", arXiv:2308.13111, and
its code; Wang et al. 2024, "BLoB: Bayesian Low-Rank Adaptation by Backpropagation", arXiv:2406.11675, and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from varlora.tasks import prompts

ChoiceRole = Literal["answer", "ending", "blank"]
"""What a choice is to its question: an answer to it, the end of its sentence, or what fills the blank in it."""
BLANK = "_"


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """A choice whose text is scored.

    Attributes:
        prompt: What stands before the text.
        text: What is scored, its space included.
    """

    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """A wording of questions for a causal LM. An encoder reads the bare text whatever the style.

    Attributes:
        choice: The prompt of a question, its choices, and what they are to it.
        yes_no: The prompt of a passage and a question.
        no_yes: What is written behind it for no and for yes.
        scored: Of a style that scores whole texts: what is scored of a question, its choices, and what they are to it.
        source: Where the wording was published.
        deviations: What differs from there, or between paper and code.
    """

    choice: Callable[[str, Sequence[str], ChoiceRole], str]
    yes_no: Callable[[str, str], str]
    no_yes: tuple[str, str] = (" no", " yes")
    scored: Callable[[str, Sequence[str], ChoiceRole], tuple[ScoredText, ...]] | None = None
    source: str
    deviations: tuple[str, ...] = ()


def cloze_choice(question: str, _choices: Sequence[str], choice_role: ChoiceRole = "answer") -> str:
    """A question without its choices; one that a choice ends, or whose blank it fills, stands alone.

    Example:
        >>> cloze_choice("Who barks?", ["cat", "dog"]), cloze_choice("It barks, so it is", ["a cat", "a dog"], "ending")
        ('Question: Who barks?\\nAnswer:', 'It barks, so it is')
    """
    return f"Question: {question}\nAnswer:" if choice_role == "answer" else question


def cloze_texts(question: str, choices: Sequence[str], choice_role: ChoiceRole = "answer") -> tuple[ScoredText, ...]:
    """Each choice behind the question; of one that fills a blank, what stands behind it (partial scoring).

    Raises:
        ValueError: Choices fill a blank, and the question has none, or nothing behind it.

    Example:
        >>> cloze_texts("Who barks?", ["cat", "dog"])[1]
        ScoredText(prompt='Question: Who barks?\\nAnswer:', text=' dog')
        >>> cloze_texts("It was _ who ran.", ["Ann", "Bea"], "blank")[0]
        ScoredText(prompt='It was Ann', text=' who ran.')
    """
    if choice_role != "blank":
        prompt = cloze_choice(question, choices, choice_role)
        return tuple(ScoredText(prompt=prompt, text=f" {choice}") for choice in choices)
    before, blank, behind = question.partition(BLANK)
    if not blank or not behind.strip():
        raise ValueError(f"a sentence with a blank, {BLANK!r}, and words behind it")
    return tuple(ScoredText(prompt=before + choice, text=f" {behind.strip()}") for choice in choices)


def cloze_yes_no(passage: str, question: str) -> str:
    """A passage and a question with its mark; " no" and " yes" are scored.

    Example:
        >>> cloze_yes_no("Crows are birds.", "do crows fly")
        'Crows are birds.\\nQuestion: do crows fly?\\nAnswer:'
    """
    return prompts.yes_no_prompt(passage, question if question.endswith("?") else f"{question}?")


def laplace_lora_choice(question: str, choices: Sequence[str], choice_role: ChoiceRole = "answer") -> str:
    """A lettered question in one line; each choice a sentence, unless it fills a blank.

    Example:
        >>> laplace_lora_choice("Who barks?", ["a cat", "a dog."])
        'Select one of the choices that answers the following question: Who barks? Choices: A. A cat. B. A dog. Answer:'
        >>> laplace_lora_choice("_ ran", ["he", "it"], "blank")
        'Select one of the choices that answers the following question: _ ran Choices: A. he. B. it. Answer:'
    """
    is_sentence = choice_role != "blank"
    written = [choice[:1].upper() + choice[1:] if is_sentence else choice for choice in choices]
    listed = [
        f"{letter}. {choice if choice.endswith('.') and is_sentence else choice + '.'}"
        for letter, choice in zip(prompts.LETTERS, written, strict=False)
    ]
    return (
        f"Select one of the choices that answers the following question: {question} Choices: {' '.join(listed)} Answer:"
    )


def laplace_lora_yes_no(passage: str, question: str) -> str:
    """A passage behind its question in one line; the answer is " False" or " True".

    Example:
        >>> laplace_lora_yes_no("Crows are birds.", "do crows fly")
        'Answer the question with only True or False: do crows fly Context: Crows are birds.'
    """
    return f"Answer the question with only True or False: {question} Context: {passage.rstrip()}"


def blob_choice(question: str, choices: Sequence[str], _choice_role: ChoiceRole = "answer") -> str:
    """An instruction, the question and its lettered choices, one a line.

    Example:
        >>> print(blob_choice("Which one barks?", ["cat", "dog"]))
        Return the label of the correct answer for the question below.
        <BLANKLINE>
        Question: Which one barks?
        Choices:
        A) cat
        B) dog
        Answer:
    """
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip(prompts.LETTERS, choices, strict=False))
    return (
        "Return the label of the correct answer for the question below.\n\n"
        f"Question: {question}\nChoices:\n{listed}\nAnswer:"
    )


def blob_yes_no(passage: str, question: str) -> str:
    """An instruction, a passage and a question; the answer is " False" or " True".

    Example:
        >>> print(blob_yes_no("Crows are birds.", "do crows fly"))
        Read the passage below and answer the question with the words 'true' or 'false'.
        <BLANKLINE>
        Passage: Crows are birds.
        Question: do crows fly
        Answer (true or false):
    """
    return (
        "Read the passage below and answer the question with the words 'true' or 'false'.\n\n"
        f"Passage: {passage}\nQuestion: {question}\nAnswer (true or false):"
    )


PROMPT_STYLES: Mapping[str, PromptStyle] = {
    "varlora": PromptStyle(
        choice=lambda question, choices, _choice_role: prompts.choice_prompt(question, choices),
        yes_no=prompts.yes_no_prompt,
        source="ours",
    ),
    "cloze": PromptStyle(
        choice=cloze_choice,
        yes_no=cloze_yes_no,
        scored=cloze_texts,
        source="lm-evaluation-harness (Gao et al.), tasks arc_easy, openbookqa, winogrande, boolq",
        deviations=(
            "the harness' acc_norm divides by a text's characters, length_normalization 'bytes' by its bytes (its "
            "acc_bytes)",
        ),
    ),
    "laplace-lora": PromptStyle(
        choice=laplace_lora_choice,
        yes_no=laplace_lora_yes_no,
        no_yes=(" False", " True"),
        source="Yang et al. 2023, arXiv:2308.13111, and its code (also IVON's workshop paper, arXiv:2411.04421)",
        deviations=(
            "the code writes WinoGrande's second choice without its point ('B Dennis.'); later papers' prompt tables "
            "have 'B. Dennis.', and so do we",
            "with Llama's tokenizer the code puts an end-of-text token behind BoolQ's prompt and reads the answer "
            "there; we read it right behind the passage",
            "the code keeps only the questions of ARC and OpenBookQA with 4 choices (choices: four), tests on the "
            "official validation split, and cuts the end of rows after 400 tokens, IVON's after 320 (max_length, "
            "truncation: right)",
        ),
    ),
    "blob": PromptStyle(
        choice=blob_choice,
        yes_no=blob_yes_no,
        no_yes=(" False", " True"),
        source="Wang et al. 2024, arXiv:2406.11675, and its code",
        deviations=(
            "the code writes the choices of ARC and OpenBookQA as 'cat) A', text before letter, and 'Chioces' for "
            "OpenBookQA; we write 'A) cat' and 'Choices' everywhere, as the code does for WinoGrande and MMLU",
            "the code cuts BoolQ's passage after 1024 characters and takes ' False' for yes and ' True' for no; we "
            "cut nothing unless truncation says so, and take ' True' for yes",
            "with Llama's tokenizer the code puts an end-of-text token behind the prompts of BoolQ and WinoGrande; we "
            "do not",
            "the code reads five letters for every question of ARC; we mask the choices that a question lacks",
        ),
    ),
}
"""The styles by the names that `prompt_style` takes."""


def style_of(name: str) -> PromptStyle:
    """The style of this name.

    Raises:
        ValueError: There is none; the message names those there are.
    """
    if name not in PROMPT_STYLES:
        raise ValueError(f"prompt_style is {name!r}; allowed: {', '.join(PROMPT_STYLES)}")
    return PROMPT_STYLES[name]
