"""MMLU's subjects as test sets, from a data set on disk with its configurations and from JSONL files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from varlora.tasks import TASKS, add_shift_tasks
from varlora.tasks.build import build_task
from varlora.tasks.mmlu import SUBJECTS
from varlora.tasks.rows import Records


def questions(subject: str) -> list[dict[str, Any]]:
    """Rows as on the hub. The letter of the answer is the text of another choice in the first."""
    return [
        {"question": f"{subject}?", "subject": subject, "choices": ["B", "A", "C", "D"], "answer": 0},
        {"question": f"{subject} again?", "subject": subject, "choices": ["1", "2", "2", "4"], "answer": 3},
    ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of the data set, a configuration for each subject."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "subject": datasets.Value("string"),
            "choices": datasets.Sequence(datasets.Value("string")),
            "answer": datasets.ClassLabel(names=["A", "B", "C", "D"]),
        }
    )
    listed = []
    for subject in SUBJECTS.values():
        (tmp_path / "mmlu" / subject).mkdir(parents=True)
        for split in ("test", "dev"):
            file = tmp_path / "mmlu" / subject / f"{split}-0.parquet"
            datasets.Dataset.from_list(questions(f"{subject} {split}"), features=features).to_parquet(file)
        listed.append(
            f"- config_name: {subject}\n  data_files:\n  - split: test\n    path: {subject}/test-*\n"
            f"  - split: dev\n    path: {subject}/dev-*\n"
        )
    (tmp_path / "mmlu" / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n", encoding="utf-8")
    return str(tmp_path / "mmlu")


def test_each_subject_is_a_test_set(hub: str) -> None:
    mmlu: Any = TASKS["mmlu"]

    task = dataclasses.replace(mmlu, dataset=hub)()

    assert list(task.splits) == ["chemistry", "physics", "computer_science", "mathematics"]
    assert task.rows("physics")["label"] == [0, 3]
    assert task.rows("physics")[0]["prompt"].startswith("college_physics test?\nA. B\nB. A\n")
    assert (task.kind, task.answers) == ("choice", ("A", "B", "C", "D"))


@pytest.mark.parametrize(("name", "subject"), SUBJECTS.items())
def test_a_subject_alone(hub: str, name: str, subject: str) -> None:
    alone: Any = TASKS[f"mmlu_{name}"]

    task = dataclasses.replace(alone, dataset=hub)(prompt_style="blob")

    assert list(task.splits) == ["test"]
    assert f"Question: {subject} test?" in task.rows("test")[0]["prompt"]
    assert task.notes == (f"test rows only, of {subject}",)


def test_one_folder_serves_all_and_shifts_another_task(tmp_path: Path) -> None:
    for name, subject in SUBJECTS.items():
        rows = "".join(json.dumps(row) + "\n" for row in questions(subject))
        (tmp_path / f"{name}.jsonl").write_text(rows.replace('"B", "A"', '"one", "two"'), encoding="utf-8")
    records = Records(where="t", rows=[{"question": f"q{i}", "choices": list("wxyz"), "answer": i} for i in range(4)])
    trained = build_task("trained", {"train": records})

    shifted = add_shift_tasks(trained, {"mmlu": TASKS["mmlu"](tmp_path)})

    assert list(shifted.splits) == ["train", *(f"mmlu_{name}" for name in SUBJECTS)]
    assert len(TASKS["mmlu_physics"](tmp_path).rows("test")) == 2
    (tmp_path / "physics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"lacks physics\.jsonl"):
        TASKS["mmlu"](tmp_path)
