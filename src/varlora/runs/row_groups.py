"""Which group each row belongs to, by a column of the file that it is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from varlora.runs.config import RunConfig
from varlora.runs.data import name_pairs
from varlora.tasks.build import record_ids
from varlora.tasks.files import read_records
from varlora.tasks.rows import Records


def groups_in(rows: Sequence[Mapping[str, Any]], column: str, *, where: str) -> tuple[str | None, ...]:
    """The group of each record; None where it has none, or an empty text.

    Args:
        rows: the records.
        column: of them, text or whole numbers.
        where: what they are called in an error.

    Raises:
        ValueError: no record has the column, or one has something else in it.

    Example:
        >>> groups_in([{"topic": "law"}, {"topic": 3}, {"topic": None}], "topic", where="rows")
        ('law', '3', None)
    """
    values = [row.get(column) for row in rows]
    if all(value is None for value in values):
        there = sorted({name for row in rows for name in row})
        raise ValueError(f"{where} has no column {column!r} to group by; it has {', '.join(there)}.")
    for value in values:
        if not isinstance(value, (str, int, type(None))):
            raise ValueError(f"{where}: the column {column!r} holds {value!r}; a group is text or a whole number.")
    return tuple(None if value is None or value == "" else str(value) for value in values)


def groups_of(ids: Sequence[str], records: Records, split: str, column: str) -> tuple[str | None, ...]:
    """The group of each row of a split, by its name.

    Args:
        ids: the rows' names.
        records: that the rows were made of.
        split: what they were called then.
        column: that names their group.

    Raises:
        ValueError: as `groups_in`, or a row is not among the records.
    """
    groups = groups_in(records.as_given or records.rows, column, where=records.where)
    by_id = dict(zip(record_ids(records, split), groups, strict=True))
    if missing := [name for name in ids if name not in by_id]:
        raise ValueError(f"{records.where} has no row {missing[0]!r} any more, and is to tell its group.")
    return tuple(by_id[name] for name in ids)


def own_records(config: RunConfig, split: str) -> tuple[Records, str]:
    """The records that a split of a run was made of, and the split that they were called after.

    Args:
        config: the run's settings: the split's file, or the training file that validation rows were cut from.
        split: the split.

    Raises:
        ValueError: the rows are from no file.
    """
    cut_from = ("validation", "train") if split == "validation" else (split,)
    for name in cut_from:
        if (file := getattr(config, f"{name}_file", None)) is not None:
            columns = name_pairs("dataset_columns", config.dataset_columns)
            return read_records(file, columns=columns), name
    raise ValueError(
        f"the {split} rows are from no file, and a group is read from a column of one. Give labelled rows that have "
        f"the column ({'--calibration_file' if split == 'validation' else '--test_file'})."
    )
