"""Columns that the data have and a task does not read: found, logged, and kept for the run's folder and its card."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from varlora.tasks.rows import ANSWER_FIELDS, READ_BESIDE, SHAPES, Records, writes_tools
from varlora.tasks.task import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def find_unread(
    name: str,
    sources: Mapping[str, Records],
    shapes: Sequence[Shape],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    in_template: Sequence[str] = (),
    logged: set[str] | None = None,
) -> dict[str, tuple[str, ...]]:
    """The columns of each split that hold something and are not read.

    Args:
        name: The task's name.
        sources: Split name to its records.
        shapes: What the records are.
        tokenizer: That of chat messages; tools that its chat template does not write count as not read.
        in_template: The columns that a prompt template names.
        logged: Those that were logged before; others are logged, and added. None: all are logged.
    """
    unread = {
        split: columns
        for split, records in sources.items()
        if (columns := _unread(records, shapes, tokenizer, in_template))
    }
    new = {column for columns in unread.values() for column in columns} - (logged or set())
    if logged is not None:
        logged |= new
    if new:
        fields = [f for shape in shapes for f in SHAPES[shape] if f not in (ANSWER_FIELDS.get(shape), "completion")]
        seen = " and ".join(dict.fromkeys(in_template or fields))
        logger.warning(
            "%s: %s; of a row the model sees %s alone",
            *(name, unread_in_words(unread, sources), seen),
        )
    return unread


def unread_in_words(not_read: Mapping[str, Sequence[str]], splits: Collection[str]) -> str:
    """What `Task.not_read` holds, as one phrase; empty if every column was read.

    Args:
        not_read: Split name to columns.
        splits: All splits; those that lack a column which others have are told apart.

    Example:
        >>> unread_in_words({"train": ("context", "source"), "test": ("context",)}, ["train", "test"])
        'not read: context, source (train)'
    """
    columns = {column: None for there in not_read.values() for column in there}
    phrases = []
    for column in columns:
        having = [split for split in splits if column in not_read.get(split, ())]
        phrases.append(column if len(having) == len(splits) else f"{column} ({', '.join(having)})")
    return f"not read: {', '.join(phrases)}" if phrases else ""


def _unread(
    records: Records, shapes: Sequence[Shape], tokenizer: PreTrainedTokenizerBase | None, in_template: Sequence[str]
) -> tuple[str, ...]:
    read = {
        "id",
        *in_template,
        *(column for shape in shapes for column in (*SHAPES[shape], *READ_BESIDE.get(shape, ()))),
    }
    unread = dict.fromkeys(c for row in records.rows for c in row if c not in read and row[c] is not None)
    if "messages" in shapes and tokenizer is not None:
        index = next((i for i, row in enumerate(records.rows) if row.get("tools")), None)
        if index is not None and not writes_tools(records, index, tokenizer):
            unread["tools"] = None
    return tuple(unread)
