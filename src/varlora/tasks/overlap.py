"""Rows that two splits share: counted and reported, never removed, so that a benchmark's splits stay the benchmark's.

Two rows are the same if their prompts are, case and spaces aside: a question with all its choices in their order, a
passage with its question, or a text. A row of a test set that is in train has been learned by heart; one in validation
has helped to choose λ, τ or a stopping step.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from varlora.tasks.task import Task

logger = logging.getLogger(__name__)

SEEN = ("train", "validation")
"""The splits that training sees, in one way or the other."""


def count_overlap(task: Task, splits: Collection[str] | None = None) -> dict[str, dict[str, int]]:
    """How many rows of each split are in "train" too, and how many of a test set in "validation".

    Args:
        task: The task.
        splits: The splits to look at; by default all but "train".

    Returns:
        Split to {"train": count, "validation": count}, without the splits that the task lacks and without validation
        for itself. Empty for a task that has neither.

    Raises:
        ValueError: If the task has no such split.

    Example:
        >>> import datasets
        >>> def rows(*prompts):
        ...     columns = {"id": prompts, "prompt": prompts, "label": [0, 0], "num_choices": [2, 2]}
        ...     return datasets.Dataset.from_dict(columns)
        >>> task = Task(name="t", kind="label", answers=("a", "b"), splits={
        ...     "train": rows("one", "two"), "test": rows("Two ", "three")})
        >>> count_overlap(task)
        {'test': {'train': 1}}
    """
    with_choices = all("choices" in rows.column_names for rows in task.splits.values())
    asked = "text" if task.cloze and with_choices else "prompt"
    seen = {split: set(map(without_case_and_spaces, task.rows(split)[asked])) for split in SEEN if split in task.splits}
    counts = {}
    for split in splits if splits is not None else [split for split in task.splits if split != "train"]:
        normal = [without_case_and_spaces(prompt) for prompt in task.rows(split)[asked]]
        counts[split] = {
            other: sum(prompt in known for prompt in normal) for other, known in seen.items() if other != split
        }
    return {split: shared for split, shared in counts.items() if shared}


def note_overlap(task: Task, splits: Collection[str] | None = None) -> Task:
    """Count the rows of every other split that are in "train" or "validation" too; note and log what was found.

    Args:
        task: The task.
        splits: The splits to look at; by default all but "train".

    Raises:
        ValueError: If the task has no such split.
    """
    notes = [
        f"{split}: {' and '.join(parts)} (kept)"
        for split, shared in count_overlap(task, splits).items()
        if (parts := _parts(shared, len(task.rows(split))))
    ]
    for note in notes:
        logger.warning("%s: %s", task.name, note)
    return task.with_splits({}, *notes)


def overlap_in_words(counts: Mapping[str, Mapping[str, int]], rows: Mapping[str, int]) -> str:
    """What `count_overlap` found, as one sentence; empty if there was nothing to compare.

    Args:
        counts: What it found.
        rows: Number of rows by split.

    Example:
        >>> overlap_in_words({"validation": {"train": 0}, "test": {"train": 2}}, {"validation": 9, "test": 9})
        'By prompt, case and spaces aside: no row of validation is in train, 2 of 9 rows of test are in train.'
    """
    clauses = []
    for other in SEEN:
        pairs = [(split, shared[other]) for split, shared in counts.items() if other in shared]
        if none := [split for split, count in pairs if count == 0]:
            *most, last = none
            clauses.append(f"no row of {', '.join(most)}{' or ' if most else ''}{last} is in {other}")
        clauses += [
            f"{count} of {rows[split]} rows of {split} {'is' if count == 1 else 'are'} in {other}"
            for split, count in pairs
            if count
        ]
    return f"By prompt, case and spaces aside: {', '.join(clauses)}." if clauses else ""


def _parts(shared: Mapping[str, int], rows: int) -> list[str]:
    return [
        f"{count} of {rows} prompts {'is' if count == 1 else 'are'} in {other} too"
        for other, count in shared.items()
        if count
    ]


def without_case_and_spaces(prompt: str) -> str:
    """What of a prompt tells its row from others.

    Example:
        >>> without_case_and_spaces(" A fine  film ")
        'a fine film'
    """
    return " ".join(prompt.lower().split())
