"""BoolQ, from a data set on disk and from a folder of JSONL files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import datasets

from varlora.tasks import TASKS, count_overlap
from varlora.tasks.boolq import boolq

ROWS = [
    {"question": f"do crows number {i} fly", "passage": f"Crow {i} can fly.", "answer": i % 3 > 0} for i in range(20)
]
OTHERS = [{**row, "passage": f"Once, {row['passage']}"} for row in ROWS[:6]]


def test_the_official_validation_set_is_the_test_set(tmp_path: Path) -> None:
    data = {"train": datasets.Dataset.from_list(ROWS), "validation": datasets.Dataset.from_list(OTHERS)}
    datasets.DatasetDict(data).save_to_disk(str(tmp_path / "boolq"))

    task = dataclasses.replace(boolq, dataset=str(tmp_path / "boolq"))(validation_size=4)

    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 16, "test": 6, "validation": 4}
    assert (task.kind, task.answers, task.continuations) == ("label", ("no", "yes"), (" no", " yes"))
    assert task.rows("test")["label"] == [0, 1, 1, 0, 1, 1]
    assert task.rows("test")[1]["prompt"] == "Once, Crow 1 can fly.\nQuestion: do crows number 1 fly\nAnswer:"
    assert count_overlap(task)["test"] == {"train": 0, "validation": 0}, "a passage is part of the row"
    assert task.notes[0] == "test: the official validation set (3270 rows); the official test is unlabelled"


def test_a_local_folder_and_a_published_prompt(tmp_path: Path) -> None:
    for file, rows in {"train.jsonl": ROWS, "dev.jsonl": [{**row, "title": "Crow"} for row in OTHERS]}.items():
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    task = TASKS["boolq"](tmp_path, prompt_style="laplace-lora")

    assert len(task.rows("test")) == 6
    assert task.continuations == (" False", " True")
    assert task.rows("test")[0]["prompt"] == (
        "Answer the question with only True or False: do crows number 0 fly Context: Once, Crow 0 can fly."
    )
    assert "test: read from dev.jsonl" in task.notes
