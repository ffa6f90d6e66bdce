"""Prompts of one's own: which fields there are, what a chat puts around, and what is cut of rows that are too long."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tiny_tokenizers import byte_bpe, sentencepiece
from varlora.tasks import OwnPrompt, Task, answer_tokens, encode, load_jsonl, load_more
from varlora.tasks.description import Wording
from varlora.tasks.named import Benchmark

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
MUTE = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPACED = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"  # noqa: E501
FILMS = [
    {"text": f"a {('dull', 'fine')[i % 2]} film {i}", "label": ("negative", "positive")[i % 2], "context": f"page {i}"}
    for i in range(4)
]
QUESTIONS = [{"question": f"which one barks? {i}", "choices": ["cat", "dog", "hen"], "answer": 1} for i in range(4)]
PASSAGES = [{"passage": f"a cow and a hen {i}", "question": "a cow", "answer": i % 2 == 0} for i in range(4)]


def chat(template: str, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template."""
    tokenizer = tokenizer if tokenizer is not None else byte_bpe()
    tokenizer.chat_template = template
    return tokenizer


def load(folder: Path, rows: Sequence[Mapping[str, Any]], prompt: OwnPrompt, **options: Any) -> Task:
    """A task of a test split alone."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    if "label" in rows[0]:
        options.setdefault("label_names", ["negative", "positive"])
    return load_jsonl({"test": file}, prompt=prompt, **options)


def test_each_shape_has_its_fields_and_any_other_column(tmp_path: Path) -> None:
    label = load(tmp_path, FILMS, OwnPrompt(template="{context}: {text} ({labels})\nSentiment:"))
    letters = load(tmp_path, FILMS, OwnPrompt(template="{text}\n{choices}\nOne of {letters}:"), label_answers="letters")
    choice = load(tmp_path, QUESTIONS, OwnPrompt(template="Q: {question}\n{choices}\n({letters}) A:\n"))
    yes_no = load(tmp_path, PASSAGES, OwnPrompt(template="{question}? {passage}; {labels}?"))

    assert label.rows("test")[1]["prompt"] == "page 1: a fine film 1 (negative, positive)\nSentiment:"
    assert label.continuations == (" negative", " positive")
    assert label.not_read == {}
    assert letters.rows("test")[0]["prompt"] == "a dull film 0\nA. negative\nB. positive\nOne of A, B:"
    assert letters.continuations == (" A", " B")
    assert choice.rows("test")[0]["prompt"] == "Q: which one barks? 0\nA. cat\nB. dog\nC. hen\n(A, B, C) A:\n"
    assert choice.continuations == ("A", "B", "C")  # a line of their own
    assert yes_no.rows("test")[2]["prompt"] == "a cow? a cow and a hen 2; no, yes?"
    assert yes_no.continuations == (" no", " yes")


def test_an_encoder_reads_the_template_as_its_text(tmp_path: Path) -> None:
    row = load(tmp_path, FILMS, OwnPrompt(template="{context}: {text}")).rows("test")[1]

    assert row["text"] == row["prompt"] == "page 1: a fine film 1"


@pytest.mark.parametrize(
    ("rows", "template", "message"),
    [
        (FILMS, "{txt}:", r"has \{txt\}; allowed: \{text\}, \{labels\}, \{context\}$"),
        (FILMS, "{text} {label}:", r"has \{label\} \(\{label\} is what is asked for\); allowed: \{text\}"),
        (FILMS, "{text} {choices}:", r"has \{choices\}; allowed"),
        (QUESTIONS, "{question} {answer}:", r"has \{answer\} \(\{answer\} is what is asked for\)"),
        (QUESTIONS, "{question} {context}:", r"has \{context\}; allowed: \{question\}, \{choices\}, \{letters\}$"),
    ],
)
def test_unknown_fields_and_the_answer_are_refused_with_those_there_are(
    tmp_path: Path, rows: list[dict[str, Any]], template: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, rows, OwnPrompt(template=template))


def test_a_row_without_the_column_is_named(tmp_path: Path) -> None:
    rows = [*FILMS, {"text": "a film", "label": "positive"}]

    with pytest.raises(
        ValueError, match=r"line 5, field 'context': got None; allowed: a text or a number, which prompt_"
    ):
        load(tmp_path, rows, OwnPrompt(template="{context}: {text}"))


def test_texts_behind_prompts_are_not_worded(tmp_path: Path) -> None:
    rows = [{"prompt": "a film", "completion": " fine"}]

    with pytest.raises(ValueError, match="are for rows with answers to choose from; jsonl is prompt/completion"):
        load(tmp_path, rows, OwnPrompt(template="{prompt}:"))


def test_a_template_and_a_published_style_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="and so does prompt_style 'blob'; leave one of them out"):
        load(tmp_path, QUESTIONS, OwnPrompt(template="{question}:"), prompt_style="blob")


def test_letters_without_choices_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(tmp_path, QUESTIONS, OwnPrompt(template="{question}\nAnswer:"))
        load(tmp_path, QUESTIONS, OwnPrompt(template="{question}\nAnswer:"), prompt_style="cloze")

    assert caplog.text.count("prompt_template has no {choices}, and the answers are their letters") == 1


def test_choices_are_scored_behind_a_template(tmp_path: Path) -> None:
    task = load(tmp_path, QUESTIONS, OwnPrompt(template="{question}\nIt is:"), prompt_style="cloze")
    row = task.rows("test")[0]

    assert row["prompt"] == "which one barks? 0\nIt is:"
    assert row["choices"] == [{"prompt": row["prompt"], "text": f" {choice}"} for choice in ("cat", "dog", "hen")]


CHATS: dict[str, tuple[str, str, tuple[str, str]]] = {
    "a line of its own": (CHATML, "<|user|>\nQ: a fine film 1</s>\n<|assistant|>\n", ("negative", "positive")),
    "empty thoughts": (
        THINKING,
        "<|user|>\nQ: a fine film 1</s>\n<|assistant|>\n<think>\n\n</think>\n\n",
        ("negative", "positive"),
    ),
    "behind a space": (SPACED, "<s>[INST] Q: a fine film 1 [/INST]", (" negative", " positive")),
}


@pytest.mark.parametrize(("template", "prompt", "answers"), CHATS.values(), ids=CHATS)
def test_the_answer_is_read_where_the_assistant_begins(
    tmp_path: Path, template: str, prompt: str, answers: tuple[str, str]
) -> None:
    tokenizer = chat(template)
    task = load(tmp_path, FILMS, OwnPrompt(template="Q: {text}\n", format="chat"), tokenizer=tokenizer)
    row = task.rows("test")[1]

    assert (row["prompt"], task.continuations) == (prompt, answers)
    start, end = row["prompt_span"]
    assert row["prompt"][start:end] == "a fine film 1"
    messages = [{"role": "user", "content": "Q: a fine film 1"}, {"role": "assistant", "content": "positive"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert str(whole).startswith(prompt + answers[1])
    tokens = answer_tokens(tokenizer, task.rows("test")["prompt"], task.continuations)
    joined = tokenizer(prompt + answers[1], add_special_tokens=False)["input_ids"]
    assert tokens[1] == joined[len(tokenizer(prompt, add_special_tokens=False)["input_ids"])]


def test_every_style_may_be_a_turn_behind_the_systems(tmp_path: Path) -> None:
    tokenizer, prompt = chat(CHATML), OwnPrompt(format="chat", system="Be brief.")
    choice = load(tmp_path, QUESTIONS, prompt, prompt_style="laplace-lora", tokenizer=tokenizer)
    yes_no = load(tmp_path, PASSAGES, prompt, prompt_style="laplace-lora", tokenizer=tokenizer)

    start = "<|system|>\nBe brief.</s>\n<|user|>\nSelect one of the choices"
    assert choice.rows("test")[0]["prompt"].startswith(start)
    assert choice.rows("test")[0]["prompt"].endswith("C. Hen. Answer:</s>\n<|assistant|>\n")
    assert (choice.continuations, yes_no.continuations) == (("A", "B", "C"), ("False", "True"))


REFUSALS = {
    "no system turn": (NO_SYSTEM + CHATML, "be brief", "System role not supported. It takes no system turn: leave"),
    "a system turn that is dropped": (MUTE, "be brief", "does not write a system turn; leave system_prompt out"),
    "no answer": ("{{ messages[0]['content'] }}", None, "does not write a user's turn and an answer once each"),
    "no template": (None, None, "has no chat template; use an instruction-tuned model, or leave prompt_format out"),
}


@pytest.mark.parametrize(("template", "system", "message"), REFUSALS.values(), ids=REFUSALS)
def test_templates_that_do_not_take_it_say_what_to_do(
    tmp_path: Path, template: Any, system: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, FILMS, OwnPrompt(format="chat", system=system), tokenizer=chat(template))


def test_a_template_without_a_system_role_works_without_one(tmp_path: Path) -> None:
    task = load(tmp_path, FILMS, OwnPrompt(format="chat"), tokenizer=chat(NO_SYSTEM + CHATML))

    assert task.rows("test")[0]["prompt"].startswith("<|user|>\na dull film 0\nLabels:")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("format", ["plain", "chat"])
@pytest.mark.parametrize("make", [byte_bpe, sentencepiece])
def test_only_the_rows_own_text_is_cut(tmp_path: Path, make: Any, format: Any, side: Any) -> None:
    tokenizer = chat(CHATML, make())
    words = " ".join(f"{('cat', 'dog', 'hen')[i % 3]}" for i in range(60))
    rows = [{"text": "fine film", "context": words, "label": "positive"}]
    prompt = OwnPrompt(template="Page: {context} Review: {text} Question: which one? Labels: {labels} A", format=format)
    task = load(tmp_path, rows, prompt, tokenizer=tokenizer)
    row, whole = task.rows("test")[0], encode(task, "test", tokenizer, None)[0]["input_ids"]
    offsets = tokenizer(row["prompt"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    start = row["prompt"].index(words)
    own = [i for i, (first, last) in enumerate(offsets) if start <= first and last <= start + len(words)]
    first, last = (place + len(whole) - len(offsets) for place in (own[0], own[-1] + 1))  # behind BOS

    cut = encode(task, "test", tokenizer, len(whole) - 20, truncation=side)[0]["input_ids"]

    gone = slice(first, first + 20) if side == "left" else slice(last - 20, last)
    assert last - first > 20
    assert cut == [*whole[: gone.start], *whole[gone.stop :]]  # turns, text, labels and cue stay


def test_a_frame_without_room_is_an_error(tmp_path: Path) -> None:
    task = load(tmp_path, FILMS, OwnPrompt(template="Question: which one? {text} Answer: A"))

    with pytest.raises(ValueError, match=r"It cannot be cut: what stays whole \(instruction, choices, cue"):
        encode(task, "test", byte_bpe(), 3, truncation="left")


def test_more_rows_are_worded_alike(tmp_path: Path) -> None:
    prompt, tokenizer = OwnPrompt(template="{context}: {text}", format="chat"), chat(CHATML)
    task = load(tmp_path, FILMS, prompt, tokenizer=tokenizer)
    file = tmp_path / "more.csv"
    file.write_text("context,text\npage 1,a fine film 1\n", encoding="utf-8")
    known: dict[str, Any] = {"kind": "label", "answers": task.answers, "labelled": False, "tokenizer": tokenizer}

    more = load_more(file, wording=Wording.of(prompt), **known)
    assert more.rows("test")[0]["prompt"] == task.rows("test")[1]["prompt"]
    assert more.continuations == task.continuations

    file.write_text("text\na fine film 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has \{context\}; allowed: \{text\}, \{labels\}$"):
        load_more(file, wording=Wording.of(prompt), **known)


def test_a_named_task_takes_it(tmp_path: Path) -> None:
    files = {"test": "test.jsonl"}
    (tmp_path / "test.jsonl").write_text(json.dumps(QUESTIONS[0]), encoding="utf-8")
    task = Benchmark(
        name="barks", dataset="b", splits={}, files=files, record=lambda row, _: row, licence="none", source="none"
    )(tmp_path, prompt=OwnPrompt(template="{question}\n{choices}\nA:", format="chat"), tokenizer=chat(CHATML))

    assert task.rows("test")[0]["prompt"].startswith("<|user|>\nwhich one barks? 0\nA. cat")
