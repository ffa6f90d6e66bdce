"""The columns of data under varlora's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from varlora.tasks.rows import ANSWER_FIELDS, Records


def rename_columns(records: Records, columns: Mapping[str, str], *, either: bool = False) -> Records:
    """The records with columns of theirs under names of ours.

    A column that has one of our names and is not meant is left out. The rows as they were are in `Records.as_given`.

    Args:
        records: The records.
        columns: Our name to theirs.
        either: Accept rows that have our name in place of theirs, as those of another file may.

    Raises:
        ValueError: A record lacks a column; the message names it and those that are there.

    Example:
        >>> rows = [{"sentence": "a fine film", "label": 1}]
        >>> rename_columns(Records(where="films.csv", rows=rows), {"text": "sentence"}).rows
        [{'label': 1, 'text': 'a fine film'}]
    """
    if not columns:
        return records
    needless = () if records.labelled else tuple(ANSWER_FIELDS.values())
    rows = []
    for index, row in enumerate(records.rows):
        there = {ours: theirs for ours, theirs in columns.items() if theirs in row or not (either and ours in row)}
        missing = [theirs for ours, theirs in there.items() if theirs not in row and ours not in needless]
        if missing:
            raise ValueError(
                f"{records.at(index)}: no column {', '.join(map(repr, missing))}, which "
                f"dataset_columns names; it has {', '.join(row)}"
            )
        rows.append(renamed(row, {ours: theirs for ours, theirs in there.items() if theirs in row}))
    return replace(records, rows=rows, as_given=records.as_given or records.rows)


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row whose columns have our names."""
    others = {key: value for key, value in row.items() if key not in columns.values() and key not in columns}
    return {**others, **{ours: row[theirs] for ours, theirs in columns.items()}}
