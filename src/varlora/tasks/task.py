"""What a task is: rows of prompts with their answers, in named splits, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import datasets

TaskKind = Literal["choice", "label", "completion"]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "choice": ("id", "prompt", "text", "label", "num_choices"),
    "label": ("id", "prompt", "text", "label", "num_choices"),
    "completion": ("id", "prompt", "completion"),
}
OUT_OF_SCOPE = -1
"""The label of a row that belongs to none of the classes."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: what is asked, what may be answered, and the rows.

    Attributes:
        name: What tables and model cards call it.
        kind: "choice" (each row offers its own choices), "label" (one set of classes for all rows) or
            "completion" (free text after a prompt).
        answers: Names of the classes: letters for "choice", class names for "label", empty for "completion".
        splits: Split name to rows. Rows of "choice" and "label" are `id`, `prompt` (what a causal LM reads),
            `text` (what an encoder reads), `label` (class index, or -1: out of scope) and `num_choices`;
            rows of "completion" are `id`, `prompt` and `completion`.
        continuations: What a causal LM writes after the prompt to give each answer; " " + answer by default.
        licence: Licence of the data, where known.
        source: Where the data came from.
        notes: What was done with the data, in words, e.g. "validation: 120 rows cut from train, seed 0".

    Raises:
        ValueError: If the kind is unknown, an answer occurs twice, there is no row, or a split lacks a column.

    Example:
        >>> rows = {"id": ["0"], "prompt": ["2 + 2 =\\nLabel:"], "label": [1], "num_choices": [2]}
        >>> task = Task(name="sums", kind="label", answers=("three", "four"),
        ...             splits={"test": datasets.Dataset.from_dict(rows)})
        >>> task.continuations
        (' three', ' four')
    """

    name: str
    kind: TaskKind
    answers: tuple[str, ...]
    splits: Mapping[str, datasets.Dataset]
    continuations: tuple[str, ...] = ()
    licence: str | None = None
    source: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(TaskKind):
            raise ValueError(f"task {self.name!r}: kind {self.kind!r}; allowed: {', '.join(get_args(TaskKind))}")
        if self.kind == "completion":
            if self.answers:
                raise ValueError(f"task {self.name!r}: a completion task has no fixed answers, got {self.answers}")
        elif len(self.answers) < 2 or len(set(self.answers)) < len(self.answers):
            raise ValueError(f"task {self.name!r}: needs two or more different answers, got {self.answers}")
        if not self.continuations:
            object.__setattr__(self, "continuations", tuple(f" {answer}" for answer in self.answers))
        if len(self.continuations) != len(self.answers):
            raise ValueError(
                f"task {self.name!r}: {len(self.answers)} answers but {len(self.continuations)} continuations"
            )
        if not self.splits:
            raise ValueError(f"task {self.name!r} has no split")
        for split, rows in self.splits.items():
            missing = [c for c in COLUMNS[self.kind] if c not in rows.column_names and c != "text"]
            if missing:
                raise ValueError(f"task {self.name!r}, split {split!r}: missing columns {missing}")
            if not len(rows):
                raise ValueError(f"task {self.name!r}, split {split!r} has no rows")

    @property
    def num_classes(self) -> int:
        """Number of answers; 0 for a completion task."""
        return len(self.answers)

    def rows(self, split: str) -> datasets.Dataset:
        """The rows of one split.

        Raises:
            ValueError: If the task has no such split (names those it has).
        """
        if split not in self.splits:
            raise ValueError(f"task {self.name!r} has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    def with_splits(self, splits: Mapping[str, datasets.Dataset], *notes: str) -> Task:
        """The same task with some splits added or replaced, and what was done noted."""
        return replace(self, splits={**self.splits, **splits}, notes=(*self.notes, *notes))
