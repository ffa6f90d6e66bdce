"""Data sets of rows that are in memory, made without the hash by which a cache would know them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


def in_memory(rows: Sequence[Mapping[str, Any]], *, description: str = "") -> datasets.Dataset:
    """A data set of rows, with what it says of itself (`datasets.DatasetInfo.description`).

    `Dataset.from_list` gives the same rows, and pickles them for a hash first, which for a few takes longer than a
    small model.

    Example:
        >>> in_memory([{"id": "a", "label": 1}, {"id": "b", "label": 0}])["label"][:]
        [1, 0]
    """
    import datasets  # not every command waits for it
    import pyarrow as pa
    from datasets.fingerprint import generate_random_fingerprint

    table = datasets.table.InMemoryTable(pa.Table.from_pylist(list(rows)))
    info = datasets.DatasetInfo(description=description)
    return datasets.Dataset(table, info=info, fingerprint=generate_random_fingerprint())


def in_order(rows: datasets.Dataset, order: Sequence[int]) -> datasets.Dataset:
    """The rows of a data set in another order.

    Example:
        >>> in_order(in_memory([{"id": "a"}, {"id": "b"}]), [1, 0])["id"][:]
        ['b', 'a']
    """
    from datasets.fingerprint import generate_random_fingerprint

    return rows.select(order, new_fingerprint=generate_random_fingerprint())


def order_by_length(encoded: datasets.Dataset) -> list[int]:
    """Indices of encoded rows from the shortest to the longest, by tokens, or by those of their longest choice.

    Example:
        >>> order_by_length(in_memory([{"input_ids": [1, 2]}, {"input_ids": [3]}]))
        [1, 0]
    """
    rows = encoded["input_ids"][:]
    lengths = [max(map(len, ids)) if isinstance(ids[0], Sequence) else len(ids) for ids in rows]
    return sorted(range(len(lengths)), key=lengths.__getitem__)
