"""What a task is: rows of prompts with their answers, in named splits, and where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from varlora.tasks.description import Wording
from varlora.tasks.final_answers import FINAL_ANSWERS, FinalAnswer

if TYPE_CHECKING:
    import datasets

TaskKind = Literal["choice", "label", "completion"]
Shape = Literal["label", "choice", "yes_no", "completion", "messages"]
"""What a record holds, by the names of `varlora.tasks.rows.SHAPES`."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "choice": ("id", "prompt", "text", "label", "num_choices"),
    "label": ("id", "prompt", "text", "label", "num_choices"),
    "completion": ("id", "prompt", "completion"),
}
VALIDATION = "validation"
"""The split of the rows that choices are made on: when to stop, a temperature, thresholds."""
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
            rows of "completion" are `id`, `prompt` and `completion`. Where `encode` may have to cut, it goes by
            `prompt_span` and `text_span`, start and end in characters of the text that may be cut (all of it
            otherwise), and for chats by `conversation`, the messages that the prompt was written from.
        continuations: What a causal LM writes after the prompt to give each answer; " " + answer by default.
        cloze: Whether a causal LM's answer is the choice whose whole text is likely, rather than one token. Scored are
            a row's `choices`, where it has them, the `prompt` and the `text` of each; otherwise the continuations.
        final_answer: Of a "completion" task whose texts are right or wrong: how the final answer is read from a
            text, "number" or "text". None: a completion is only more or less likely.
        wording: How the prompts were worded, by which more rows are worded alike; None where `build_task` did not word
            them.
        licence: Licence of the data, where known.
        source: Where the data came from.
        notes: What was done with the data, in words, e.g. "validation: 120 rows cut from train, seed 0".
        not_read: Split name to the columns that the data have and the task does not read.
        shape: Of the records that the rows were made from; None where `build_task` did not make them.

    Raises:
        ValueError: If the kind is unknown, an answer occurs twice, there is no row, or a split lacks a column.

    Example:
        >>> import datasets
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
    cloze: bool = False
    final_answer: FinalAnswer | None = None
    wording: Wording | None = None
    licence: str | None = None
    source: str | None = None
    notes: tuple[str, ...] = ()
    not_read: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shape: Shape | None = None

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
        if self.cloze and self.kind == "completion":
            raise ValueError(f"task {self.name!r}: a completion task has no choices to score; set cloze=False")
        if self.final_answer is not None and (self.kind != "completion" or self.final_answer not in FINAL_ANSWERS):
            raise ValueError(
                f"task {self.name!r}, of kind {self.kind}: final_answer {self.final_answer!r}; allowed: "
                f"{', '.join(FINAL_ANSWERS) if self.kind == 'completion' else 'none, it is for completions'}"
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

    def right_answers(self, split: str, *, special_tokens: Iterable[str] = ()) -> tuple[str, ...]:
        """The final answer of each row's completion.

        Args:
            split: Which split.
            special_tokens: The tokenizer's, which a chat template may have put into completions; they are left out.

        Raises:
            ValueError: If the task has no final answers, or a row's completion lacks one (naming it).

        Example:
            >>> import datasets
            >>> rows = {"id": ["0"], "prompt": ["2 + 2 ="], "completion": [" 4</s>"]}
            >>> task = Task(name="sums", kind="completion", answers=(), final_answer="text",
            ...             splits={"test": datasets.Dataset.from_dict(rows)})
            >>> task.right_answers("test", special_tokens=["</s>"])
            ('4',)
        """
        if self.final_answer is None:
            raise ValueError(f"task {self.name!r} has no final answers; set final_answer to 'number' or 'text'")
        read, rows = FINAL_ANSWERS[self.final_answer], self.rows(split)
        special, answers = tuple(special_tokens), []
        for name, completion in zip(rows["id"], rows["completion"], strict=True):
            text = completion
            for token in special:
                text = text.replace(token, " ")
            answer = read(text)
            if answer is None:
                raise ValueError(
                    f"task {self.name!r}, {split}, row {name!r}: its completion has no final {self.final_answer}: "
                    f"{completion[-60:]!r}; correct it, or choose another final_answer"
                )
            answers.append(answer)
        return tuple(answers)

    def with_splits(self, splits: Mapping[str, datasets.Dataset], *notes: str) -> Task:
        """The same task with some splits added or replaced, and what was done noted."""
        return replace(self, splits={**self.splits, **splits}, notes=(*self.notes, *notes))
