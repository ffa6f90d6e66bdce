"""Records become rows; every record that does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tiny_tokenizers import word_level
from varlora.tasks import Task
from varlora.tasks.build import build_prompts, build_task
from varlora.tasks.description import Wording
from varlora.tasks.rows import Records

CHOICE = {"question": "which barks?", "choices": ["cat", "dog", "cow"], "answer": 1}
LABEL = {"text": "a fine film", "label": "positive"}
OTHER = {"text": "a dull film", "label": "negative"}
YES_NO = {"passage": "Crows are birds.", "question": "do crows fly", "answer": True}
COMPLETION = {"prompt": "Answer:", "completion": " yes"}
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT: dict[str, list[dict[str, Any]]] = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
}


def build(*rows: Mapping[str, Any], **options: Any) -> Task:
    return build_task("t", {"train": Records(where="train.jsonl", rows=rows)}, **options)


@pytest.mark.parametrize("answer", [1, "B", "dog"])
def test_a_choice_is_given_by_index_letter_or_text(answer: object) -> None:
    task = build({**CHOICE, "answer": answer, "id": "q7", "explanation": "not read"})

    assert task.kind == "choice"
    assert task.answers == ("A", "B", "C")
    assert task.continuations == (" A", " B", " C")
    assert task.rows("train")[0] == {
        "id": "q7",
        "prompt": "which barks?\nA. cat\nB. dog\nC. cow\nAnswer:",
        "text": "which barks?\nA. cat\nB. dog\nC. cow",
        "label": 1,
        "num_choices": 3,
        "prompt_span": [0, 12],
        "text_span": [0, 12],
    }


def test_questions_keep_their_own_number_of_choices() -> None:
    task = build(CHOICE, {**CHOICE, "choices": list("abcde"), "answer": 4})

    assert task.answers == ("A", "B", "C", "D", "E")
    assert list(task.rows("train")["num_choices"]) == [3, 5]


def test_label_names_are_those_of_train_sorted() -> None:
    task = build(LABEL, OTHER)

    assert task.answers == ("negative", "positive")
    assert list(task.rows("train")["label"]) == [1, 0]
    assert task.rows("train")[0]["prompt"] == "a fine film\nLabels: negative, positive\nLabel:"
    assert task.rows("train")[0]["text"] == "a fine film"


def test_integer_labels_sort_as_numbers_and_may_start_anywhere() -> None:
    task = build(*({"text": str(n), "label": n} for n in (10, 9, 2)))

    assert task.answers == ("2", "9", "10")
    assert list(task.rows("train")["label"]) == [2, 1, 0]


def test_given_label_names_number_the_classes() -> None:
    task = build({"text": "x", "label": 1}, {"text": "y", "label": "good"}, label_names=["good", "bad"])

    assert list(task.rows("train")["label"]) == [1, 0]


def test_letters_can_answer_for_classes() -> None:
    task = build(LABEL, OTHER, wording=Wording(label_answers="letters"))

    assert task.answers == ("negative", "positive")
    assert task.continuations == (" A", " B")
    assert task.rows("train")[0]["prompt"] == "a fine film\nA. negative\nB. positive\nAnswer:"


def test_two_letters_each_answer_for_more_than_26_classes() -> None:
    names = [f"class {n}" for n in range(30)]

    task = build({"text": "a film", "label": 29}, label_names=names, wording=Wording(label_answers="letters"))

    assert task.continuations[:2] + task.continuations[-1:] == (" AA", " AB", " BD")
    lines = task.rows("train")[0]["prompt"].splitlines()
    assert lines[1] == "AA. class 0"
    assert lines[30] == "BD. class 29", "every class is listed"
    with pytest.raises(ValueError, match="at most 676 classes, got 677"):
        build(LABEL, label_names=[f"class {n}" for n in range(677)], wording=Wording(label_answers="letters"))


def test_yes_and_no() -> None:
    task = build(YES_NO, {**YES_NO, "answer": False})

    assert task.continuations == (" no", " yes")
    assert list(task.rows("train")["label"]) == [1, 0]
    assert task.rows("train")[0]["prompt"] == "Crows are birds.\nQuestion: do crows fly\nAnswer:"


def test_messages_become_prompt_and_completion_by_the_chat_template() -> None:
    tokenizer = word_level()
    tokenizer.chat_template = CHAT_TEMPLATE

    row = build(CHAT, tokenizer=tokenizer).rows("train")[0]

    assert (row["prompt"], row["completion"]) == ("<user> hi <assistant>", " yes ")


RATE = {"type": "function", "function": {"name": "rate", "description": "rates a film", "parameters": {}}}
TOOLS = "{% if tools %}{% for tool in tools %}<tool> {{ tool.function.name }} {% endfor %}{% endif %}"
CALL = {"role": "assistant", "content": None, "tool_calls": [RATE]}


@pytest.mark.parametrize("tools", [[RATE], json.dumps([RATE])])
def test_tools_are_handed_to_the_chat_template(tools: object) -> None:
    tokenizer = word_level()
    tokenizer.chat_template = TOOLS + CHAT_TEMPLATE
    records = Records(where="train.jsonl", rows=[{**CHAT, "tools": tools}, CHAT])

    task = build_task("t", {"train": records}, tokenizer=tokenizer)
    asked = build_prompts("t", "new", replace(records, labelled=False), tokenizer=tokenizer)

    prompts = ["<tool> rate <user> hi <assistant>", "<user> hi <assistant>"]
    assert list(task.rows("train")["prompt"]) == list(asked.rows("new")["prompt"]) == prompts
    assert task.not_read == asked.not_read == {}
    assert build({"messages": [*CHAT["messages"], CHAT["messages"][0], CALL]}, tokenizer=tokenizer).num_classes == 0


def test_what_is_not_read_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A column that the shape does not know, one of another split, and tools that a template does not write."""
    tokenizer = word_level()
    tokenizer.chat_template = CHAT_TEMPLATE
    sources = {
        "train": Records(where="a", rows=[{"context": "Dogs bark.", "source": None, **CHOICE, "id": 1}]),
        "test": Records(where="b", rows=[CHOICE, {"context": "Cats purr.", "url": "u", **CHOICE}]),
    }

    told = build_task("t", sources).not_read
    chat = build({**CHAT, "tools": [RATE]}, tokenizer=tokenizer)
    bare = build_prompts("t", "new", Records(where="n", rows=[{"prompt": "a", "why": 1}], labelled=False))

    assert told == {"train": ("context",), "test": ("context", "url")}
    assert "t: not read: context, url (test); of a row the model sees question and choices alone" in caplog.text
    assert chat.not_read == {"train": ("tools",)}
    assert "t: not read: tools; of a row the model sees messages alone" in caplog.text
    assert bare.not_read == {"new": ("why",)}
    assert build(CHOICE, {**CHOICE, "id": 7}).not_read == {}


ALIKE = ("Positive", "positive ", "ＰＯＳＩＴＩＶＥ", "posi\u200btive", "positive\u00a0")


@pytest.mark.parametrize("other", ALIKE)
def test_two_spellings_of_one_class_are_refused_unless_named(other: str) -> None:
    rows = [LABEL, LABEL, OTHER, {**LABEL, "label": other}]

    with pytest.raises(ValueError, match=r"may be one class: .*\(1 rows\).*label_names_file") as caught:
        build(*rows)
    assert f"{other!r} (1 rows)" in str(caught.value)
    assert "'positive' (2 rows)" in str(caught.value)
    insisted = build(*rows, label_names=["negative", "positive", other])
    assert list(insisted.rows("train")["label"]) == [1, 1, 0, 2]


def test_out_of_scope_rows_are_taken_only_where_asked_for() -> None:
    sources = {
        "train": Records(where="train.jsonl", rows=[LABEL, OTHER]),
        "ood": Records(where="ood.jsonl", rows=[{"text": "what time is it", "label": -1}]),
    }

    assert build_task("t", sources, ood_splits=["ood"]).rows("ood")[0]["label"] == -1
    with pytest.raises(ValueError, match=r"ood.jsonl, line 1, field 'label': got -1; .*out of scope"):
        build_task("t", sources)
    with pytest.raises(ValueError, match=r"out-of-scope splits \['odd'\] are not among"):
        build_task("t", sources, ood_splits=["odd"])


def test_a_repeated_wrong_choice_is_taken_only_where_asked_for() -> None:
    row = {**CHOICE, "choices": ["cat", "dog", "cat"]}

    assert build(row, repeated_choices=True).rows("train")[0]["num_choices"] == 3
    with pytest.raises(ValueError, match="choices that all differ"):
        build({**row, "answer": 0}, repeated_choices=True)


BAD = {
    "missing column": ([{"text": "x"}], r"train.jsonl, line 1: missing column 'label' of the shape text/label"),
    "missing column later": ([LABEL, {"text": "x"}], r"line 2: missing column 'label'"),
    "no known column": ([{"sentence": "x"}], r"line 1: got columns \['sentence'\]; allowed shapes: text/label; "),
    "no record": ([], r"train.jsonl is empty"),
    "mixed shapes": ([LABEL, CHOICE], r"line 2: the shape is question/choices/answer, .* before it are text/label"),
    "two shapes at once": ([{**CHOICE, **YES_NO}], r"fits question/choices/answer and passage/question/answer"),
    "two shapes later": ([CHOICE, {**CHOICE, **COMPLETION}], r"line 2: the record fits .*; keep the columns of one"),
    "answer out of range": (
        [CHOICE, {**CHOICE, "answer": 3}],
        r"train.jsonl, line 2, field 'answer': got 3; allowed: an index from 0 to 2, a letter from A to C",
    ),
    "negative answer": ([{**CHOICE, "answer": -1}], r"field 'answer': got -1"),
    "boolean answer": ([{**CHOICE, "answer": True}], r"field 'answer': got True"),
    "letter out of range": ([{**CHOICE, "answer": "D"}], r"field 'answer': got 'D'"),
    "two readings": ([{**CHOICE, "choices": ["B", "A"], "answer": "A"}], r"letter and another's text"),
    "one choice": ([{**CHOICE, "choices": ["cat"]}], r"field 'choices': .*a list of 2 to 26 strings"),
    "27 choices": ([{**CHOICE, "choices": [str(n) for n in range(27)]}], r"a list of 2 to 26 strings"),
    "choices not a list": ([{**CHOICE, "choices": "cat"}], r"field 'choices': got 'cat'"),
    "duplicate choices": ([{**CHOICE, "choices": ["cat", "cat"]}], r"choices that all differ"),
    "empty choice": ([{**CHOICE, "choices": ["cat", " "]}], r"field 'choices': .*not empty"),
    "empty text": ([LABEL, {**OTHER, "text": " "}], r"line 2, field 'text': got ' '; allowed: a string that is not"),
    "text not a string": ([{**LABEL, "text": 3}, OTHER], r"field 'text': got 3"),
    "fractional label": ([{**LABEL, "label": 0.5}], r"field 'label': got 0.5"),
    "float label": ([{**LABEL, "label": 1.0}], r"field 'label': got 1.0; .*without a point \(1, not 1.0\)"),
    "label of spaces": ([{**LABEL, "label": " "}], r"field 'label': got ' '"),
    "tools that are none": ([{**CHAT, "tools": "rate"}], r"line 1, field 'tools': got 'rate'; allowed: a JSON list"),
    "tools not objects": ([{**CHAT, "tools": ["rate"]}], r"field 'tools': got \['rate'\]; allowed: a list of obj"),
    "boolean label": ([{**LABEL, "label": True}], r"field 'label': got True"),
    "two types of label": ([LABEL, {**OTHER, "label": 0}], r"line 2, field 'label': got 0; .*integers or strings"),
    "one class": ([LABEL], r"train.jsonl, field 'label': .*two or more different label names, got \('positive',\)"),
    "yes/no in words": ([{**YES_NO, "answer": "yes"}], r"field 'answer': got 'yes'; allowed: true or false"),
    "empty completion": ([{**COMPLETION, "completion": ""}], r"field 'completion': got ''"),
    "same id twice": ([{**CHOICE, "id": 1}] * 2, r"line 2, field 'id': got 1; allowed: an id of its own \(line 1"),
    "id not a string": ([{**CHOICE, "id": None}], r"field 'id': got None"),
    "no tokenizer for chat": ([CHAT], r"line 1: messages need a tokenizer with a chat template"),
    "no last answer": ([{"messages": CHAT["messages"][::-1]}], r"a last message whose role is assistant"),
    "one message": ([{"messages": CHAT["messages"][:1]}], r"a list of two or more messages"),
    "message without role": ([{"messages": [{"content": "x"}] * 2}], r"objects with \"role\" and \"content\""),
}


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD.keys())
def test_a_record_that_does_not_fit_is_named(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*rows)


def test_a_label_unknown_to_train_is_refused() -> None:
    sources = {
        "train": Records(where="train.jsonl", rows=[LABEL, OTHER]),
        "test": Records(where="test.jsonl", rows=[LABEL, {"text": "x", "label": "so-so"}], unit="row"),
    }

    with pytest.raises(ValueError, match=r"test.jsonl, row 2, field 'label': got 'so-so'; allowed: negative, posit"):
        build_task("t", sources)


def test_splits_of_different_shapes_are_refused() -> None:
    sources = {"train": Records(where="a.jsonl", rows=[LABEL]), "test": Records(where="b.jsonl", rows=[CHOICE])}

    with pytest.raises(ValueError, match=r"one shape, got a.jsonl: text/label; b.jsonl: question/choices/answer"):
        build_task("t", sources)


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        build(CHAT, tokenizer=word_level())


def test_label_names_without_train_must_be_given() -> None:
    test = {"test": Records(where="test.jsonl", rows=[LABEL])}

    with pytest.raises(ValueError, match="label names must be given"):
        build_task("t", test)
    assert build_task("t", test, label_names=["negative", "positive"]).rows("test")[0]["label"] == 1
