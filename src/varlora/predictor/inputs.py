"""What a predictor is asked, as raw records: one row, a list of them, a data set, or a stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from varlora.tasks.rows import Records

WHERE = "rows"
"""What the rows of a call are called in an error."""

Row = str | Mapping[str, Any]
"""One row: a text, or a record as in training."""


def is_one_row(rows: object) -> bool:
    """Whether it is a text or a record, and not several.

    Example:
        >>> is_one_row({"text": "a fine film"}), is_one_row(["a fine film"])
        (True, False)
    """
    return isinstance(rows, (str, Mapping)) and not isinstance(rows, datasets.DatasetDict)


def listed(rows: object) -> Sequence[Any] | None:
    """The rows, if they are all at hand; None of a stream, which is read once.

    Args:
        rows: A list or tuple, a data set, a NumPy array of texts, a table of pandas or a column of it.

    Example:
        >>> listed(np.array(["a fine film"]))
        ['a fine film']
        >>> listed(iter(["a fine film"])) is None
        True
    """
    if isinstance(rows, datasets.DatasetDict):
        raise ValueError(f"the rows are a DatasetDict; give one of its splits: {', '.join(map(str, rows))}.")
    if isinstance(rows, (list, tuple, datasets.Dataset)):
        return rows
    if isinstance(rows, np.ndarray):
        if rows.ndim == 2 and rows.shape[1] == 1:
            rows = rows[:, 0]
        if rows.ndim != 1:
            raise ValueError(f"the rows are an array of shape {rows.shape}; give one of shape (N,), of texts.")
        return list(rows.tolist())
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return list(rows.to_dict("records"))
    if hasattr(rows, "to_list"):
        return list(rows.to_list())
    if isinstance(rows, Iterable) and not isinstance(rows, bytes):
        return None
    raise ValueError(
        f"the rows are a {type(rows).__name__}; give a text, a record, a list of them, a data set, or an iterator."
    )


def records_of(rows: Iterable[Any], field: str | None, *, first: int = 0, labelled: bool = False) -> Records:
    """The rows as records, a bare text in the field that a text stands in.

    Args:
        rows: Texts and records.
        field: "text" or "prompt"; None where a row is more than a text.
        first: How many rows there are before these.
        labelled: Whether their answers are read.

    Raises:
        ValueError: A row is neither, or a text that does not say enough.
    """
    records = []
    for index, row in enumerate(rows):
        if isinstance(row, Mapping):
            records.append(row)
            continue
        at = f"{WHERE}, row {first + index + 1}"
        if not isinstance(row, str):
            raise ValueError(f"{at} is a {type(row).__name__}; give a text, or a record as in training.")
        if field is None:
            raise ValueError(
                f"{at} is a text, and the task asks for more; give a record as in training: "
                '{"question": ..., "choices": [...]} or {"passage": ..., "question": ...}, and any other column that '
                'the run\'s prompt names; of texts with the classes no and yes {"text": ...}.'
            )
        records.append({field: row})
    return Records(where=WHERE, rows=records, unit="row", labelled=labelled, first=first)


def chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of so many rows, the last perhaps of fewer.

    Example:
        >>> list(chunks("abc", 2))
        [['a', 'b'], ['c']]
    """
    stream = iter(rows)
    while chunk := list(itertools.islice(stream, size)):
        yield chunk
