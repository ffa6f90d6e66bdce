"""Counting the rows that two splits share."""

from __future__ import annotations

import logging

import datasets
import pytest

from varlora.tasks import Task, count_overlap, note_overlap
from varlora.tasks.build import build_task
from varlora.tasks.overlap import overlap_in_words
from varlora.tasks.rows import Records


def rows(*prompts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "id": [str(i) for i in range(len(prompts))],
            "prompt": list(prompts),
            "label": [0] * len(prompts),
            "num_choices": [2] * len(prompts),
        }
    )


def task_of(**splits: datasets.Dataset) -> Task:
    return Task(name="t", kind="label", answers=("a", "b"), splits=splits)


def test_rows_are_compared_without_case_and_spaces() -> None:
    task = task_of(train=rows("row 0", "row 1"), test=rows("ROW  0 ", "row 1\n", "row 2"))

    assert count_overlap(task) == {"test": {"train": 2}}


def test_rows_are_counted_against_train_and_validation() -> None:
    task = task_of(
        train=rows("a", "b"), validation=rows("b", "c", "d"), test=rows("c", "C", "x"), shift=rows("a", "d", "y")
    )

    assert count_overlap(task) == {
        "validation": {"train": 1},
        "test": {"train": 0, "validation": 2},
        "shift": {"train": 1, "validation": 1},
    }
    assert count_overlap(task, ["shift"]) == {"shift": {"train": 1, "validation": 1}}


def test_nothing_to_compare_with_is_no_count() -> None:
    assert count_overlap(task_of(test=rows("a"), shift=rows("a"))) == {}
    assert count_overlap(task_of(validation=rows("a"))) == {}


def test_a_question_is_the_same_only_with_the_same_choices() -> None:
    question = {"question": "Which one barks?", "answer": 0}
    sources = {
        "train": [{**question, "choices": ["dog", "cat"]}],
        "test": [{**question, "choices": ["DOG", "cat"]}, {**question, "choices": ["dog", "cow"]}],
    }
    task = build_task("t", {split: Records(where=split, rows=found) for split, found in sources.items()})

    assert count_overlap(task) == {"test": {"train": 1}}


def test_what_is_shared_is_noted_and_logged_and_nothing_removed(caplog: pytest.LogCaptureFixture) -> None:
    task = task_of(train=rows("a", "b"), validation=rows("c"), test=rows("a", "b", "c"), shift=rows("x"))

    with caplog.at_level(logging.WARNING):
        noted = note_overlap(task)

    note = "test: 2 of 3 prompts are in train too and 1 of 3 prompts is in validation too (kept)"
    assert noted.notes == (note,)
    assert f"t: {note}" in caplog.text
    assert len(noted.rows("test")) == 3
    assert note_overlap(task, ["shift"]).notes == ()


def test_in_words() -> None:
    task = task_of(train=rows("a", "b"), validation=rows("c"), test=rows("a", "c", "x"), shift=rows("x"))

    said = overlap_in_words(count_overlap(task), {split: len(found) for split, found in task.splits.items()})

    assert said == (
        "By prompt, case and spaces aside: no row of validation or shift is in train, 1 of 3 rows of test is in train, "
        "no row of shift is in validation, 1 of 3 rows of test is in validation."
    )
    assert overlap_in_words({}, {}) == ""
