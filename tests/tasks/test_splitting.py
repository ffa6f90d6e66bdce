"""Drawing rows by a seed, in proportion."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets
import pytest

from varlora.tasks import Task, cut_validation, keep_num_choices, limit_split
from varlora.tasks.splitting import pick


def task_of(labels: list[int], kind: Any = "label", **splits: datasets.Dataset) -> Task:
    rows = {
        "id": [str(i) for i in range(len(labels))],
        "prompt": [f"row {i}" for i in range(len(labels))],
        "label": labels,
        "num_choices": [3 + i % 2 for i in range(len(labels))],
    }
    train = datasets.Dataset.from_dict(rows)
    return Task(name="t", kind=kind, answers=("a", "b", "c", "d"), splits={"train": train, **splits})


@pytest.mark.parametrize("size", [1, 2, 7, 50, 99, 100])
def test_pick_draws_that_many_rows_each_class_in_proportion(size: int) -> None:
    labels = [0] * 70 + [1] * 20 + [2] * 10

    chosen = pick(labels, size, seed=1)

    assert len(set(chosen)) == size
    assert chosen == sorted(chosen)
    for label, count in Counter(labels).items():
        assert abs(sum(labels[i] == label for i in chosen) - size * count / 100) < 1


def test_pick_depends_on_the_seed_alone() -> None:
    labels = [0, 1] * 50

    assert pick(labels, 10, seed=1) == pick(labels, 10, seed=1) != pick(labels, 10, seed=2)


def test_pick_can_leave_a_row_of_every_class() -> None:
    labels = [0] * 9 + [1]

    assert 9 not in pick(labels, 8, seed=0, leave_one=True)
    with pytest.raises(ValueError, match="cannot take 9 of 10 rows; allowed: 1 to 8"):
        pick(labels, 9, seed=0, leave_one=True)


def test_limit_train_takes_rows_in_proportion_and_says_so() -> None:
    task = limit_split(task_of([0] * 30 + [1] * 10), "train", 8, seed=5)

    assert Counter(task.rows("train")["label"]) == {0: 6, 1: 2}
    assert task.notes == ("train: 8 of 40 rows, seed 5",)
    assert limit_split(task, "train", 8) is task, "nothing to do"
    with pytest.raises(ValueError, match="cannot keep 0 rows of train"):
        limit_split(task, "train", 0)


def test_validation_is_cut_once(caplog: pytest.LogCaptureFixture) -> None:
    task = cut_validation(task_of([0, 1] * 20), size=0.25)

    assert len(task.rows("validation")) == 10
    caplog.clear()
    assert cut_validation(task) is task
    assert not caplog.messages
    assert cut_validation(task, size=0.25) is task
    assert caplog.messages == ["t has validation rows of its own: a validation size of 0.25 cuts nothing"]


def test_keep_num_choices_filters_every_split() -> None:
    task = keep_num_choices(task_of([0, 1, 2, 3], kind="choice"), 3)

    assert task.answers == ("a", "b", "c")
    assert list(task.rows("train")["id"]) == ["0", "2"]
    assert task.notes == ("train: the 2 of 4 questions with 3 choices",)
    with pytest.raises(ValueError, match="no question of train has 5 choices"):
        keep_num_choices(task_of([0, 1, 2, 3], kind="choice"), 5)
    with pytest.raises(ValueError, match="only a choice task"):
        keep_num_choices(task_of([0, 1]), 3)
