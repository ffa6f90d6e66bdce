"""`varlora tasks`: the list, one task in detail, and its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.workshop import Outcome, Workshop, write_rows
from varlora.tasks import TASKS

Call = Callable[..., Outcome]


def joined(outcome: Outcome) -> str:
    return " ".join(outcome.out.split())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_in_detail(call: Call, name: str) -> None:
    shown = call("tasks", name)
    task = TASKS[name]

    assert shown.code == 0
    text = joined(shown)
    for word in (task.licence, task.source, task.dataset, *task.splits, *task.deviations):  # type: ignore[attr-defined]
        assert word in text
    assert ("prompt_style laplace-lora" in text) == ("question" in task.example)  # type: ignore[attr-defined]


def test_prompts_and_what_answers_them(call: Call) -> None:
    text = joined(call("tasks", "boolq", "--prompt_style", "laplace-lora"))

    assert "Answer the question with only True or False: do crows fly Context: Crows are birds" in text
    assert "Answered by ' False', ' True'" in text
    assert "arXiv:2308.13111" in text
    assert "prompt_style varlora" not in text
    assert "locally validation.jsonl or dev.jsonl or test.jsonl" in text
    assert "Split validation cut from train" in text
    assert "' ' and the name of the class" in joined(call("tasks", "clinc150"))
    assert "Answered by a text such as" in joined(call("tasks", "gsm8k"))


def test_the_tokens_of_a_model(call: Call, workshop: Workshop) -> None:
    text = joined(call("tasks", "winogrande_s", "--prompt_style=varlora", f"--model_name_or_path={workshop.model}"))

    assert "' A' (token" in text


def test_the_rows_of_a_folder_and_those_that_are_shared(call: Call, tmp_path: Path) -> None:
    rows = [{"question": f"q{i}?", "choices": list("abcd")[: 3 + i % 2], "answer": i % 3} for i in range(20)]
    write_rows(tmp_path / "train.jsonl", rows[:10])
    write_rows(tmp_path / "validation.jsonl", rows[10:14])
    write_rows(tmp_path / "test.jsonl", [rows[1], *rows[14:]])

    text = joined(call("tasks", "arc_easy", "--task_dir", tmp_path))
    four = joined(call("tasks", "arc_easy", "--task_dir", tmp_path, "--choices=four"))

    assert "Rows: train 10, validation 4, test 7." in text
    assert "no row of validation is in train, 1 of 7 rows of test is in train, no row of test is in validation." in text
    assert "Rows: train 5, validation 2, test 4." in four


def test_what_is_not_there_is_named(call: Call, tmp_path: Path) -> None:
    for words, message in {
        ("arc_esay",): "unknown task 'arc_esay'; did you mean 'arc_easy'",
        ("arc_easy", "--task_dir", str(tmp_path)): "lacks train.jsonl, validation.jsonl, test.jsonl",
        ("--task_dir", str(tmp_path)): "--task_dir has no effect without the NAME of a task",
        ("sst2", "--prompt_style", "blob"): "prompt_style is 'blob', which words questions",
    }.items():
        refused = call("tasks", *words)
        assert (refused.code, message) == (1, message if message in refused.err else refused.err)
