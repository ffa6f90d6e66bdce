"""WinoGrande's two sizes, from a data set on disk and from a folder of JSONL files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from varlora.tasks import TASKS

ROWS = [
    {
        "sentence": f"Ann met Bo {i} times since _ had time.",
        "option1": "Ann",
        "option2": "the Bo",
        "answer": "12"[i % 2],
    }
    for i in range(20)
]


@pytest.mark.parametrize("size", ["s", "m"])
def test_the_development_set_is_the_test_set(size: str, tmp_path: Path) -> None:
    unlabelled = [{**row, "answer": ""} for row in ROWS]
    data = {"train": ROWS, "validation": ROWS[:4], "test": unlabelled}
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in data.items()}).save_to_disk(
        str(tmp_path / "w")
    )
    benchmark: Any = TASKS[f"winogrande_{size}"]

    task = dataclasses.replace(benchmark, dataset=str(tmp_path / "w"))(validation_size=5, prompt_style="laplace-lora")

    assert benchmark.config == f"winogrande_{size}"
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 15, "test": 4, "validation": 5}
    assert (task.answers, task.rows("test")["label"]) == (("A", "B"), [0, 1, 0, 1])
    assert task.rows("test")[0]["prompt"].endswith("since _ had time. Choices: A. Ann. B. the Bo. Answer:")


@pytest.mark.parametrize("file", ["dev_a.jsonl", "dev_b.jsonl", "dev.jsonl"])
def test_a_local_folder_may_hold_either_half(file: str, tmp_path: Path) -> None:
    rows = [{"question": f"{i} _ ran", "choices": ["Ann", "Bo"], "answer": i % 2} for i in range(20)]
    for name in ("train.jsonl", file):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    task = TASKS["winogrande_m"](tmp_path)

    assert len(task.rows("test")) == 20
    assert f"test: read from {file}" in task.notes
