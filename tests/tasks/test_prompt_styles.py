"""Prompt styles: word for word, and readable by their answers' tokens."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from tiny_tokenizers import word_level
from varlora.runs.config import RunConfig
from varlora.tasks import PROMPT_STYLES, Task, answer_tokens
from varlora.tasks.build import build_task
from varlora.tasks.description import Wording
from varlora.tasks.prompt_styles import style_of
from varlora.tasks.rows import Records

QUESTION = {"question": "Which one barks?", "choices": ["a cat", "dogs do.", "Cows"], "answer": 1}
PASSAGE = {"passage": "Crows are birds. ", "question": "do crows fly", "answer": True}
PROMPTS = {
    "varlora": "Which one barks?\nA. a cat\nB. dogs do.\nC. Cows\nAnswer:",
    "cloze": "Question: Which one barks?\nAnswer:",
    "laplace-lora": (
        "Select one of the choices that answers the following question: Which one barks? Choices: A. A cat. "
        "B. Dogs do. C. Cows. Answer:"
    ),
    "blob": (
        "Return the label of the correct answer for the question below.\n\nQuestion: Which one barks?\nChoices:\n"
        "A) a cat\nB) dogs do.\nC) Cows\nAnswer:"
    ),
}
YES_NO = {
    "varlora": ("Crows are birds. \nQuestion: do crows fly\nAnswer:", (" no", " yes")),
    "cloze": ("Crows are birds. \nQuestion: do crows fly?\nAnswer:", (" no", " yes")),
    "laplace-lora": (
        "Answer the question with only True or False: do crows fly Context: Crows are birds.",
        (" False", " True"),
    ),
    "blob": (
        "Read the passage below and answer the question with the words 'true' or 'false'.\n\n"
        "Passage: Crows are birds. \nQuestion: do crows fly\nAnswer (true or false):",
        (" False", " True"),
    ),
}


def build(row: dict[str, object], style: str, choice_role: Any = "answer", **options: Any) -> Task:
    wording = Wording(prompt_style=style, choice_role=choice_role)
    return build_task("t", {"test": Records(where="t", rows=[row])}, wording=wording, **options)


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_questions_with_choices(style: str) -> None:
    task = build(QUESTION, style)
    row = task.rows("test")[0]

    assert row["prompt"] == PROMPTS[style]
    assert row["text"] == "Which one barks?\nA. a cat\nB. dogs do.\nC. Cows", "an encoder reads the bare text"
    assert (row["label"], row["num_choices"], task.answers) == (1, 3, ("A", "B", "C"))
    assert len(set(answer_tokens(word_level(), [row["prompt"]], task.continuations))) == 3


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_yes_and_no(style: str) -> None:
    task = build(PASSAGE, style)
    prompt, answers = YES_NO[style]

    assert (task.rows("test")[0]["prompt"], task.continuations) == (prompt, answers)
    assert (task.answers, list(task.rows("test")["label"])) == (("no", "yes"), [1]), "yes is the class 1 in every style"
    tokenizer = word_level(words=("True", "False"))
    no, yes = answer_tokens(tokenizer, [prompt], answers)
    assert tokenizer.convert_ids_to_tokens([no, yes]) == [answer.strip() for answer in answers]


def test_choices_that_fill_a_blank_keep_their_case() -> None:
    row = {"question": "Ann had _ too.", "choices": ["a cat.", "the cat"], "answer": 0}

    prompt = build(row, "laplace-lora", choice_role="blank").rows("test")[0]["prompt"]

    assert prompt.endswith("Ann had _ too. Choices: A. a cat.. B. the cat. Answer:")
    assert (
        build(row, "varlora", choice_role="blank").rows("test")[0]["prompt"].endswith("A. a cat.\nB. the cat\nAnswer:")
    )


@pytest.mark.parametrize("row", [{"text": "fine", "label": "x"}, {"prompt": "a", "completion": " b"}])
def test_texts_and_completions_have_our_wording_only(row: dict[str, object]) -> None:
    names = {"label_names": ["x", "y"]} if "text" in row else {}

    assert len(build(row, "varlora", **names).rows("test")) == 1
    with pytest.raises(ValueError, match=r"prompt_style is 'blob', which words questions.*Leave prompt_style out"):
        build(row, "blob", **names)


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ValueError, match="prompt_style is 'lapace'; allowed: varlora, cloze, laplace-lora, blob"):
        style_of("lapace")


def test_the_settings_know_every_style() -> None:
    assert get_args(get_type_hints(RunConfig)["prompt_style"]) == tuple(PROMPT_STYLES)
