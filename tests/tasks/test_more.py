"""More rows for a known task: labelled ones to evaluate on, and ones without labels to predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_tokenizers import word_level
from varlora.tasks import OUT_OF_SCOPE, encode, encode_prompts, load_more

SENTIMENT: dict[str, Any] = {"kind": "label", "answers": ("negative", "positive")}
LETTERS: dict[str, Any] = {"kind": "choice", "answers": ("A", "B", "C")}
YES_NO: dict[str, Any] = {"kind": "label", "answers": ("no", "yes")}
FREE: dict[str, Any] = {"kind": "completion", "answers": ()}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_labels_keep_the_tasks_indices(tmp_path: Path) -> None:
    file = written(tmp_path, {"text": "fine", "label": "positive"}, {"text": "finer", "label": "positive"})

    assert load_more(file, **SENTIMENT).rows("test")["label"] == [1, 1]


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        (SENTIMENT, {"text": "a fine film"}, {"label": "positive"}),
        (LETTERS, {"question": "which barks?", "choices": ["cat", "dog"]}, {"answer": "dog"}),
        (YES_NO, {"passage": "Crows are birds.", "question": "do crows fly"}, {"answer": True}),
    ],
)
def test_rows_without_labels_read_as_with_them(
    tmp_path: Path, task: dict[str, Any], question: dict[str, Any], answer: dict[str, Any]
) -> None:
    labelled = load_more(written(tmp_path, {**question, **answer}), **task).rows("test")[0]
    with pytest.raises(ValueError, match=f"missing column '{next(iter(answer))}'"):
        load_more(written(tmp_path, question), **task)

    for given in (question, {**question, **dict.fromkeys(answer, "nonsense")}):
        bare = load_more(written(tmp_path, given), **task, labelled=False)
        assert bare.rows("test")[0] == {**labelled, "label": OUT_OF_SCOPE}
        assert encode(bare, "test", word_level(), None)["labels"] == [-100]


def test_texts_and_questions_with_the_same_classes_are_told_apart(tmp_path: Path) -> None:
    text, question = {"text": "a fine film"}, {"passage": "Crows are birds.", "question": "do crows fly"}
    for row, own, other in ((text, "label", "yes_no"), (question, "yes_no", "label")):
        task = load_more(written(tmp_path, row), **YES_NO, shape=own, labelled=False)
        assert task.shape == own
        with pytest.raises(ValueError, match=r"holds records of .*; those that the task was trained on are of "):
            load_more(written(tmp_path, row), **YES_NO, shape=other, labelled=False)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (SENTIMENT, {"question": "q", "choices": ["a", "b"]}, "of kind 'choice'; the task is of kind 'label'"),
        (SENTIMENT, {"passage": "p", "question": "q"}, "of kind 'yes or no'"),
        (LETTERS, {"text": "a film"}, "the task is of kind 'choice'"),
        (LETTERS, {"question": "q", "choices": list("wxyz")}, "line 1, field 'choices'.*at most 3"),
        (SENTIMENT, {"prompt": "p"}, "allowed shapes: text; question/choices; passage/question$"),
        (FREE, {"text": "a film"}, r"line 1: got columns \['text'\]; allowed: prompt, or messages"),
        (FREE, {"prompt": "p", "messages": []}, "allowed: prompt, or messages, one of the two"),
        (FREE, {"prompt": " "}, "field 'prompt': got ' '"),
        (FREE, {"messages": []}, "a list of one or more messages"),
        (FREE, {"messages": [{"role": "assistant", "content": "hi"}]}, "a message before the assistant's"),
        (FREE, {"messages": [{"role": "user", "content": "hi"}]}, "messages need a tokenizer"),
    ],
)
def test_rows_of_another_task_are_refused(
    tmp_path: Path, task: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_more(written(tmp_path, row), **task, labelled=False)


def test_prompts_are_read_without_what_follows_them(tmp_path: Path) -> None:
    tokenizer = word_level(bos=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    user, assistant = {"role": "user", "content": "a film"}, {"role": "assistant", "content": "fine"}
    for row, prompt in (
        ({"prompt": "Answer:"}, "Answer:"),
        ({"id": "new-00000", "prompt": "Answer:", "completion": 5, "text": "not read"}, "Answer:"),
        ({"messages": [user]}, "<user> a film <assistant>"),
        ({"messages": [user, assistant]}, "<user> a film <assistant>"),
        ({"messages": [user, assistant, user]}, "<user> a film <assistant> fine <user> a film <assistant>"),
    ):
        task = load_more(written(tmp_path, row), **FREE, split="new", labelled=False, tokenizer=tokenizer)
        told = task.rows("new").remove_columns([c for c in task.rows("new").column_names if c == "conversation"])
        assert told[0] == {"id": "new-00000", "prompt": prompt, "completion": ""}
        encoded = encode_prompts(task, "new", tokenizer, None)[0]
        assert encoded == {"id": "new-00000", "input_ids": tokenizer(prompt)["input_ids"]}
    with pytest.raises(ValueError, match="missing column 'completion'"):
        load_more(written(tmp_path, {"prompt": "Answer:"}), **FREE)
