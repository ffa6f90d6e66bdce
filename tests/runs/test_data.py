"""The data of a run: prompt style, choices, and shifted test sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from varlora.runs.config import RunConfig
from varlora.runs.data import load_task, wording_of

FILES = {
    "arc_easy": ("train.jsonl", "validation.jsonl", "test.jsonl"),
    "openbookqa": ("train.jsonl", "validation.jsonl", "test.jsonl"),
    "mmlu": ("chemistry.jsonl", "physics.jsonl", "computer_science.jsonl", "mathematics.jsonl"),
    "winogrande_s": ("train.jsonl", "dev_a.jsonl"),
}
CHOICES = {"arc_easy": (3, 4, 5), "openbookqa": (4,), "mmlu": (4,), "winogrande_s": (2,)}


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def questions(name: str, count: int, choices: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"question": f"{name} {i}?", "choices": [f"choice {c}" for c in range(choices[i % len(choices)])], "answer": 0}
        for i in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a folder for each of some tasks."""
    for task, files in FILES.items():
        for file in files:
            write(tmp_path / task / file, questions(f"{task} {file}", 12, CHOICES[task]))
    return tmp_path


def config(data: Path, **options: Any) -> RunConfig:
    given = {"task": "openbookqa", "task_dir": str(data / "openbookqa"), **options}
    return RunConfig(model_name_or_path="m", output_dir="out", **given)


def sizes(data: Path, **options: Any) -> dict[str, int]:
    task = load_task(config(data, **options))
    return {split: len(rows) for split, rows in task.splits.items()}


def test_a_data_sets_splits_are_named_on_the_command_line(tmp_path: Path) -> None:
    rows = {"text": [f"film {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    hidden = {"text": ["a", "b"], "label": [-1, -1]}
    parts = {"train": rows, "validation": {**rows, "text": list("abcdefghijklmnopqrst")}, "test": hidden}
    datasets.DatasetDict({n: datasets.Dataset.from_dict(part) for n, part in parts.items()}).save_to_disk(tmp_path)

    def sizes_of(splits: str | None) -> dict[str, int]:
        named = RunConfig(model_name_or_path="m", output_dir="out", dataset_name=str(tmp_path), dataset_splits=splits)
        return {split: len(rows) for split, rows in load_task(named).splits.items()}

    assert sizes_of("test=none") == {"train": 20, "validation": 20}
    assert sizes_of("test=validation") == {"train": 18, "validation": 2, "test": 20}
    assert sizes_of("test=none, ood=test") == {"train": 20, "validation": 20, "ood": 2}
    with pytest.raises(ValueError, match=r"got -1; .*test=none leaves it out"):
        sizes_of(None)
    for wrong in ("test", "test=none,test=validation"):
        with pytest.raises(ValueError, match=r"dataset_splits is .*each of our names once"):
            sizes_of(wrong)
    with pytest.raises(ValueError, match="has no effect without dataset_name"):
        RunConfig(model_name_or_path="m", output_dir="o", train_file="t", dataset_splits="test=none")
    with pytest.raises(ValueError, match=r"label_names_file .* has no effect without train_file or dataset_name"):
        RunConfig(model_name_or_path="m", output_dir="o", task="sst2", label_names_file="t")


def test_shift_tasks_are_further_test_sets(data: Path) -> None:
    task = load_task(config(data, shift_tasks="arc_easy, mmlu_chemistry", shift_task_dir=str(data)))

    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 12,
        "validation": 12,
        "test": 12,
        "arc_easy": 12,
        "mmlu_chemistry": 12,
    }
    assert task.name == "openbookqa"
    assert task.answers == ("A", "B", "C", "D", "E")
    assert task.rows("arc_easy")["num_choices"][:3] == [3, 4, 5]
    assert "arc_easy test.jsonl 0?" in task.rows("arc_easy")["prompt"][0]


def test_a_shift_task_is_its_test_rows_alone(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it shares with its own training rows is nobody's business here, and these need not be there."""
    (data / "arc_easy" / "train.jsonl").unlink()
    write(data / "arc_easy" / "validation.jsonl", questions("arc_easy test.jsonl", 12, CHOICES["arc_easy"]))

    with caplog.at_level("WARNING"):
        task = load_task(config(data, shift_tasks="arc_easy", shift_task_dir=str(data)))

    assert len(task.rows("arc_easy")) == 12
    assert caplog.text == ""
    assert not any("too" in note for note in task.notes)


def test_classes_named_by_training_rows_are_read_from_them(data: Path) -> None:
    rows = [{"text": f"request {i}", "label": ("alarm", "balance")[i % 2]} for i in range(20)]
    for file in ("train", "validation", "test"):
        write(data / "clinc150" / f"{file}.jsonl", rows)
    own = write(data / "own.jsonl", [{**row, "text": f"own {row['text']}"} for row in rows])
    mine = {"task": None, "task_dir": None, "train_file": own}

    assert sizes(data, **mine, shift_tasks="clinc150", shift_task_dir=str(data))["clinc150"] == 20


def test_a_task_of_several_test_sets_gives_them_all(data: Path) -> None:
    found = sizes(data, shift_tasks="mmlu", shift_task_dir=str(data))

    assert list(found)[3:] == ["mmlu_chemistry", "mmlu_physics", "mmlu_computer_science", "mmlu_mathematics"]


def test_own_rows_can_be_shifted_too(data: Path) -> None:
    file = write(data / "own.jsonl", questions("own", 20, (4,)))

    found = sizes(data, task=None, task_dir=None, train_file=file, shift_tasks="arc_easy", shift_task_dir=str(data))

    assert found == {"train": 18, "validation": 2, "arc_easy": 12}


def test_four_choices_everywhere(data: Path) -> None:
    task = load_task(
        config(
            data,
            task="arc_easy",
            task_dir=str(data / "arc_easy"),
            choices="four",
            shift_tasks="mmlu_physics,openbookqa",
            shift_task_dir=str(data),
        )
    )

    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 4,
        "validation": 4,
        "test": 4,
        "mmlu_physics": 12,
        "openbookqa": 12,
    }
    assert task.answers == ("A", "B", "C", "D")
    assert "test: the 4 of 12 questions with 4 choices" in task.notes


def test_a_shift_task_is_filtered_before_the_letters_are_extended(data: Path) -> None:
    task = load_task(config(data, choices="four", shift_tasks="arc_easy", shift_task_dir=str(data)))

    assert (len(task.rows("arc_easy")), task.answers) == (4, ("A", "B", "C", "D"))


def test_rows_are_drawn_from_each_split(data: Path) -> None:
    found = sizes(data, shift_tasks="arc_easy", shift_task_dir=str(data), max_train_samples=5, max_test_samples=3)

    assert found == {"train": 5, "validation": 12, "test": 3, "arc_easy": 3}


@pytest.mark.parametrize("style", ["laplace-lora", "blob"])
def test_one_prompt_style_for_all_splits(style: str, data: Path) -> None:
    task = load_task(config(data, prompt_style=style, shift_tasks="arc_easy", shift_task_dir=str(data)))

    starts = {prompt[:6] for rows in task.splits.values() for prompt in rows["prompt"]}
    assert starts == {"Select" if style == "laplace-lora" else "Return"}
    own = write(data / "own.jsonl", questions("own", 20, (4,)))
    mine = load_task(config(data, task=None, task_dir=None, train_file=own, prompt_style=style))
    assert mine.rows("train")["prompt"][0].startswith(starts.pop())


def test_what_a_choice_is_to_its_question_goes_by_the_trained_task(data: Path) -> None:
    assert wording_of(config(data, task="winogrande_s", task_dir=None)).choice_role == "blank"
    assert wording_of(config(data)).choice_role == "ending"
    assert wording_of(config(data, task=None, task_dir=None, train_file="own.jsonl")).choice_role == "answer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift_tasks": "arc_esay"}, "unknown task 'arc_esay' in shift_tasks; did you mean 'arc_easy'"),
        ({"shift_tasks": "arc_easy,arc_easy"}, "shift_tasks names arc_easy twice"),
        ({"shift_tasks": "arc_easy,openbookqa"}, "shift_tasks names 'openbookqa', which is the task itself"),
        ({"shift_tasks": "arc_challenge"}, "there is no folder .*arc_challenge"),
        ({"shift_tasks": "mmlu,mmlu_physics"}, "'mmlu_physics' gives the split 'mmlu_physics', which is there already"),
        ({"task": "winogrande_s", "choices": "four"}, "no question of train has 4 choices"),
    ],
)
def test_what_does_not_fit_is_named(data: Path, options: dict[str, Any], message: str) -> None:
    folder = {"task_dir": str(data / options["task"])} if "task" in options else {}
    shift = {"shift_task_dir": str(data)} if "shift_tasks" in options else {}
    with pytest.raises(ValueError, match=message):
        load_task(config(data, **options, **folder, **shift))
