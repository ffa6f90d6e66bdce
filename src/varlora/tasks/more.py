"""More rows for a task that is already known: to evaluate a trained model on, or to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from varlora.tasks.build import build_prompts, build_task
from varlora.tasks.description import Wording
from varlora.tasks.files import read_records
from varlora.tasks.prompts import YES_NO
from varlora.tasks.rows import SHAPES, Records
from varlora.tasks.task import Shape, Task, TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_more(
    file: str | Path | Records,
    *,
    kind: TaskKind,
    answers: Sequence[str],
    shape: Shape | None = None,
    split: str = "test",
    labelled: bool = True,
    name: str = "jsonl",
    wording: Wording | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    logged: set[str] | None = None,
) -> Task:
    """Load a file (`varlora.tasks.files`) as a split of a known task.

    Args:
        file: The file, in the shape of the task's own rows, "-" for standard input, or what `read_records` read.
        kind: The task's kind.
        answers: The task's answers; the file's rows get the same class indices.
        shape: Of the task's own records; None where that is not known.
        split: What to call the rows.
        labelled: Whether answers are read. If not, the records may lack them (`{"text": ...}`,
            `{"question": ..., "choices": [...]}`, `{"prompt": ...}`), those that are there are not looked at, and
            every row's label is -1, or its completion empty.
        name: The task's name.
        wording: How a causal LM is asked, as in training.
        tokenizer: For chats: its chat template writes the prompt.
        logged: As of `build_task`.

    Raises:
        ValueError: If the rows are not of this task; the message names file, line and field.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "new.jsonl")
        >>> _ = file.write_text('{"text": "a fine film"}', encoding="utf-8")
        >>> task = load_more(file, kind="label", answers=("bad", "good"), split="new", labelled=False)
        >>> task.rows("new")[0]["label"], task.rows("new")[0]["id"]
        (-1, 'new-00000')
    """
    if isinstance(file, Records):
        records = replace(file, labelled=labelled)
    else:
        records = read_records(file, labelled=labelled, once=True)
    if kind == "completion" and not labelled:
        prompts = build_prompts(name, split, records, tokenizer=tokenizer, logged=logged)
        return replace(prompts, source=Path(records.where).name)
    classes = tuple(answers)
    by_text = all(field in records.rows[0] for field in records.fields("label"))
    if by_text and kind != "label":
        raise _of_another_task(records, "label", kind, classes)
    task = build_task(
        name,
        {split: records},
        label_names=classes if by_text else None,
        wording=wording,
        tokenizer=tokenizer,
        source=Path(records.where).name,
        logged=logged,
    )
    if task.kind != kind or (kind == "label" and task.answers != classes):
        raise _of_another_task(records, "yes or no" if task.answers == YES_NO else task.kind, kind, classes)
    if kind == "label" and shape is not None and task.shape is not None and task.shape != shape:
        got, own = ("/".join(SHAPES[one]) for one in (task.shape, shape))
        raise ValueError(f"{records.where} holds records of {got}; those that the task was trained on are of {own}")
    if kind == "choice" and len(task.answers) > len(classes):
        index = max(range(len(records.rows)), key=lambda i: len(records.rows[i]["choices"]))
        raise records.error(
            index, "choices", records.rows[index]["choices"], f"at most {len(classes)}, as many as in training"
        )
    return task


def _of_another_task(records: Records, got: str, kind: TaskKind, classes: Sequence[str]) -> ValueError:
    listed = f" with the classes {', '.join(classes[:12])}" if kind == "label" else ""
    return ValueError(f"{records.where} holds questions of kind {got!r}; the task is of kind {kind!r}{listed}")
