"""Shifted test sets: the test rows of other tasks as further splits of the task that a model is trained on.

A model that was trained on OpenBookQA is tested on ARC and MMLU: other questions, but the same lettered answers.
Nothing is learned or chosen on these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from varlora.tasks.overlap import note_overlap
from varlora.tasks.task import Task

if TYPE_CHECKING:
    import datasets


def add_shift_tasks(task: Task, others: Mapping[str, Task]) -> Task:
    """Add the test sets of other tasks as splits that bear their names.

    A task's test set is its split "test"; one of several test sets and no split "test", as `mmlu`, adds each under its
    name and the set's ("mmlu_chemistry").

    Questions with choices may have more of them than the trained ones: the letters are then extended, always from A,
    to the longest question of any split, and the choices that a question lacks stay masked. So a question with 5
    choices can be answered by a model that was trained on 4 (it has never been shown an E as the answer). Tasks with
    classes must have the same classes in the same order.

    Args:
        task: What is trained on.
        others: Name to task, as its loader gives it, with the same prompt style.

    Raises:
        ValueError: If a task cannot be answered with the trained answers, has no test set, or gives a split that is
            there already.

    Example:
        >>> import datasets
        >>> def rows(n):
        ...     return datasets.Dataset.from_dict({"id": ["0"], "prompt": ["?"], "label": [0], "num_choices": [n]})
        >>> trained = Task(name="t", kind="choice", answers=tuple("ABCD"), splits={"train": rows(4)})
        >>> other = Task(name="o", kind="choice", answers=tuple("ABCDE"), splits={"train": rows(3), "test": rows(5)})
        >>> both = add_shift_tasks(trained, {"o": other})
        >>> list(both.splits), both.answers
        (['train', 'o'], ('A', 'B', 'C', 'D', 'E'))
    """
    splits: dict[str, datasets.Dataset] = {}
    not_read = dict(task.not_read)
    notes: list[str] = []
    for name, other in others.items():
        _check(task, name, other)
        for split, own in _test_sets(name, other).items():
            if split in task.splits or split in splits:
                raise ValueError(f"the shift task {name!r} gives the split {split!r}, which is there already")
            rows = splits[split] = other.rows(own)
            if own in other.not_read:
                not_read[split] = other.not_read[own]
            notes.append(f"{split}: {len(rows)} test rows of {other.name} ({other.source}; {other.licence})")
    needed = max((max(rows["num_choices"]) for rows in splits.values()), default=0) if task.kind == "choice" else 0
    if needed > len(task.answers):
        longest = max(others.values(), key=lambda other: len(other.answers))
        notes.append(
            f"answers {', '.join(task.answers)} extended to {', '.join(longest.answers[:needed])} for the questions of "
            "the shift tasks; the choices that a question lacks are masked"
        )
        task = replace(task, answers=longest.answers[:needed], continuations=longest.continuations[:needed])
    return note_overlap(replace(task.with_splits(splits, *notes), not_read=not_read), tuple(splits))


def _test_sets(name: str, other: Task) -> dict[str, str]:
    """What each of its test sets is called here, to what it is called there."""
    if "test" in other.splits:
        return {name: "test"}
    sets = {f"{name}_{split}": split for split in other.splits if split not in ("train", "validation")}
    if not sets:
        raise ValueError(f"the shift task {name!r} has no test set; it has {', '.join(other.splits)}")
    return sets


def _check(task: Task, name: str, other: Task) -> None:
    """Refuses a task whose rows a model of this one cannot answer."""
    if other.kind != task.kind:
        raise ValueError(
            f"the shift task {name!r} is of kind {other.kind!r}, and {task.name!r} of kind {task.kind!r}; a model "
            "answers questions of the kind it was trained on"
        )
    if task.kind == "label" and other.answers != task.answers:
        raise ValueError(
            f"the shift task {name!r} has the classes {', '.join(other.answers[:12])}, and {task.name!r} has "
            f"{', '.join(task.answers[:12])}; a model knows the classes it was trained on, in their order"
        )
    shared = min(len(task.answers), len(other.answers))
    if other.cloze != task.cloze:
        scored = name if other.cloze else task.name
        raise ValueError(f"only {scored!r} scores its choices' texts; load both tasks with one prompt_style")
    if other.continuations[:shared] != task.continuations[:shared]:
        raise ValueError(
            f"the shift task {name!r} is answered by {other.continuations[:shared]}, and {task.name!r} by "
            f"{task.continuations[:shared]}; load both with one prompt_style and one label_answers"
        )
