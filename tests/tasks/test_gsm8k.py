"""GSM8K from rows of the hub and from a folder of the same content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from varlora.tasks import TASKS
from varlora.tasks import named as named_module

ROWS = [
    {"question": f"What is {i} + 1?", "answer": f"It is <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"} for i in range(20)
]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for file in ("train.jsonl", "test.jsonl"):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_hub_and_folder_hold_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.Dataset.from_list(ROWS)
    asked: list[Any] = []

    def read(*given: Any, **_: Any) -> dict[str, datasets.Dataset]:
        asked.append(given)
        return {"train": data, "test": data}

    monkeypatch.setattr(named_module, "read_dataset", read)
    from_hub = TASKS["gsm8k"](validation_size=5)
    from_folder = TASKS["gsm8k"](written(tmp_path, ROWS), validation_size=5)

    assert asked == [("openai/gsm8k", "main")]
    for task in (from_hub, from_folder):
        assert (task.kind, task.final_answer, task.licence) == ("completion", "number", "MIT")
        assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 15, "test": 20, "validation": 5}
        assert task.rows("test")[3] == {
            "id": "test-00003",
            "prompt": "Question: What is 3 + 1?\nAnswer:",
            "completion": " It is <<3+1=4>>4.\n#### 4",
        }
        assert task.right_answers("test") == tuple(str(i + 1) for i in range(20))
    assert from_hub.rows("train")[:] == from_folder.rows("train")[:]


def test_a_row_of_a_folder_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"train.jsonl, line 2: missing column 'answer'; task 'gsm8k' has question/ans"
    ):
        TASKS["gsm8k"](written(tmp_path, [ROWS[0], {"question": "q"}]))
    with pytest.raises(ValueError, match=r"train.jsonl, line 1, field 'answer': got 4"):
        TASKS["gsm8k"](written(tmp_path, [{"question": "q", "answer": 4}]))
