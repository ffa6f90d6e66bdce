"""Choices scored as texts: what is asked, which tokens are scored, and batches of them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tokenizers import normalizers

from tiny_tokenizers import byte_bpe, sentencepiece, word_level
from varlora.tasks import TASKS, Collator, Task, count_overlap, encode
from varlora.tasks.build import build_task
from varlora.tasks.choice_sequences import choice_sequences
from varlora.tasks.description import Wording
from varlora.tasks.rows import Records

QUESTIONS = [
    {"id": "q1", "question": "which one barks?", "choices": ["a cat", "dog", "hen film"], "answer": "B"},
    {"id": "q2", "question": "film", "choices": ["cow", "a fine cat"], "answer": 0},
]
TOKENIZERS = {
    "bytes": byte_bpe,
    "bytes, BOS and EOS": lambda: byte_bpe(bos=True, eos=True),
    "SentencePiece, BOS": sentencepiece,
    "words": word_level,
}


def cloze(rows: list[dict[str, Any]] = QUESTIONS, **options: Any) -> Task:
    sources = {"train": Records(where="t.jsonl", rows=rows)}
    return build_task("t", sources, wording=Wording(prompt_style="cloze", **options))


def scored(task: Task, split: str = "example") -> list[tuple[str, str]]:
    return [(choice["prompt"], choice["text"]) for choice in task.rows(split)[0]["choices"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("arc_easy", [("Question: Which one is a liquid?\nAnswer:", f" {c}") for c in ("ice", "water", "steam")]),
        ("arc_challenge", [("Question: Which one is a liquid?\nAnswer:", f" {c}") for c in ("ice", "water", "steam")]),
        ("openbookqa", [("A plant grows towards", f" the {c}") for c in ("light", "dark", "wind", "sound")]),
        ("winogrande_s", [(f"Ann thanked Bea because {c}", " had helped.") for c in ("Ann", "Bea")]),
    ],
)
def test_the_words_are_the_harness(name: str, expected: list[tuple[str, str]]) -> None:
    task = TASKS[name].example_task("cloze")  # type: ignore[attr-defined]
    assert task.cloze
    assert scored(task) == expected


def test_yes_and_no_and_class_names_are_scored_behind_their_prompts() -> None:
    boolq = TASKS["boolq"].example_task("cloze")  # type: ignore[attr-defined]
    assert boolq.rows("example")[0]["prompt"].endswith("\nQuestion: do crows fly?\nAnswer:")
    assert boolq.continuations == (" no", " yes")
    films = [{"text": "a fine film", "label": "so very fine"}, {"text": "a dull film", "label": "so very dull"}]
    task, tokenizer = cloze(films), word_level(words=("so", "very", "fine", "dull"))
    row = encode(task, "train", tokenizer, None)[0]
    assert row["choice_lengths"] == [3, 3]  # names that begin alike have no token of their own to answer with
    assert [tokenizer.decode(ids[-3:]) for ids in row["input_ids"]] == ["so very dull", "so very fine"]
    with pytest.raises(ValueError, match="scores the classes' names, and label_answers is 'letters'"):
        cloze(films, label_answers="letters")
    with pytest.raises(ValueError, match=r"is prompt/completion\. Leave prompt_style out"):
        cloze([{"prompt": "a", "completion": " b"}])


def test_a_blank_needs_words_behind_it() -> None:
    for question in ("Ann thanked Bea.", "Ann thanked _"):
        row = {"question": question, "choices": ["Ann", "Bea"], "answer": 0}
        with pytest.raises(ValueError, match=r"line 1, field 'question'.*allowed: a sentence with a blank, '_'"):
            cloze([row], choice_role="blank")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_texts_tokens_are_those_behind_the_prompts_own(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    begins = [1] if "BOS" in name else []
    for row, record in zip(encode(cloze(), "train", tokenizer, None), QUESTIONS, strict=True):
        prompt = f"Question: {record['question']}\nAnswer:"
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for c, choice in enumerate(record["choices"]):
            whole = tokenizer(f"{prompt} {choice}", add_special_tokens=False)["input_ids"]
            assert row["input_ids"][c] == [*begins, *whole]
            assert row["choice_lengths"][c] == len(whole) - len(before) > 0
            assert row["choice_bytes"][c] == len(choice.encode())
        assert (row["num_choices"], row["labels"]) == (len(record["choices"]), [1, 0][row["id"] == "q2"])


def test_a_rows_texts_are_tokenized_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred classes take no longer than their tokens do."""
    tokenizer, calls = byte_bpe(bos=True), []
    call = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *a, **o: (calls.append(a), call(*a, **o))[1])
    found = choice_sequences(tokenizer, {"prompt": "film"}, [f" cat {n}" for n in range(200)])
    assert len(found.input_ids) == 200
    assert len(calls) == 3, "the prompt with and without BOS, and all texts behind it"


def test_spaces_at_the_prompts_end_are_scored_with_the_text() -> None:
    tokenizer = byte_bpe()
    plain, spaced = (
        choice_sequences(tokenizer, {"prompt": prompt}, [text]) for prompt, text in [("film", " cat"), ("film ", "cat")]
    )
    assert spaced.input_ids == plain.input_ids
    assert spaced.choice_lengths == plain.choice_lengths


def test_a_token_that_holds_prompt_and_text_is_scored() -> None:
    tokenizer = byte_bpe()
    found = choice_sequences(tokenizer, {"prompt": "a fine fil"}, ["m", "m cat"])
    assert [tokenizer.decode(ids) for ids in found.input_ids] == ["a fine film", "a fine film cat"]
    scored = [tokenizer.decode(ids[-n:]) for ids, n in zip(found.input_ids, found.choice_lengths, strict=True)]
    assert scored == [" film", " film cat"]


def test_a_choice_without_a_token_is_an_error_that_names_the_row() -> None:
    tokenizer = byte_bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(" ~", ""), normalizers.Replace("~", "")]
    )
    rows = [QUESTIONS[0], {"id": "q9", "question": "film", "choices": ["~", "cat"], "answer": 0}]
    with pytest.raises(ValueError, match=r"task 't', train, row 'q9': the choice ' ~' has no token"):
        encode(cloze(rows, choice_role="ending"), "train", tokenizer, None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_rows_are_cut_to_the_same_words_for_every_choice(side: Any, caplog: pytest.LogCaptureFixture) -> None:
    words = ["cat", "dog", "cow", "hen", "fine", "dull", "film", "negative", "positive", "a"]
    tokenizer = word_level(words=words)
    row = {"id": "long", "question": " ".join(words), "choices": ["cat", "a fine cat", "dog"], "answer": 1}
    task = cloze([row])
    with pytest.raises(ValueError, match=r"row 'long' has 15 tokens with its longest choice, more than the 9 allowed"):
        encode(task, "train", tokenizer, 9)

    with caplog.at_level(logging.WARNING):
        (cut,) = encode(task, "train", tokenizer, 9, truncation=side)

    assert "1 of 1 rows cut" in caplog.text
    prompts = [tokenizer.decode(ids[:-n]) for ids, n in zip(cut["input_ids"], cut["choice_lengths"], strict=True)]
    kept = " ".join(words[-4:] if side == "left" else words[:4])
    assert prompts == [f"Question: {kept} Answer:"] * 3
    assert [tokenizer.decode(ids[-n:]) for ids, n in zip(cut["input_ids"], cut["choice_lengths"], strict=True)] == [
        "cat",
        "a fine cat",
        "dog",
    ]
    with pytest.raises(ValueError, match="It cannot be cut"):
        encode(task, "train", tokenizer, 4, truncation=side)


def test_a_batch_has_a_sequence_for_each_choice() -> None:
    tokenizer, task = word_level(), cloze()
    rows = encode(task, "train", tokenizer, None)

    batch = Collator.of(task, tokenizer, ids=True)(list(rows))

    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3, 7)
    assert batch["choice_mask"].tolist() == [[True] * 3, [True, True, False]]
    assert batch["choice_lengths"].tolist() == [[2, 1, 2], [1, 3, 0]]
    assert batch["choice_bytes"].tolist() == [[5, 3, 8], [3, 10, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["id"] == ["q1", "q2"]
    assert batch["attention_mask"].sum(-1).tolist() == [[7, 6, 7], [4, 6, 0]]
    for row, there in zip(rows, batch["input_ids"], strict=True):
        for ids, padded in zip(row["input_ids"], there.tolist(), strict=False):
            assert padded[-len(ids) :] == ids


def test_a_question_with_other_choices_is_another_row() -> None:
    train = [{"question": "which one?", "choices": ["cat", "dog"], "answer": 0}]
    test = [{"question": "Which one?", "choices": ["cat", "dog"], "answer": 0}, {**train[0], "choices": ["cow", "hen"]}]
    sources = {s: Records(where=s, rows=rows) for s, rows in {"train": train, "test": test}.items()}
    assert count_overlap(build_task("t", sources, wording=Wording(prompt_style="cloze"))) == {"test": {"train": 1}}
