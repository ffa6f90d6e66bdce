"""The rows of a batch: along which axis each of its values has them, some of them, and all of them again.

A value has its rows along the first axis, with two exceptions. Positions with several coordinates for a token (time,
height and width, of Qwen2-VL and its kin) are (coordinates, B, T); `cache_position` (T,) is the same for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Batch = Mapping[str, Any]
SHARED = ("cache_position",)
"""Tensors that are of all rows, whatever their lengths."""


def row_axis(batch: Batch, name: str) -> int | None:
    """Along which axis a value of a batch has its rows; None where it is one for all of them.

    Example:
        >>> import torch
        >>> batch = {"input_ids": torch.zeros(3, 5), "position_ids": torch.zeros(3, 3, 5), "scale": torch.tensor(2.0)}
        >>> [row_axis(batch, name) for name in batch]
        [0, 1, None]
    """
    value, ids = batch[name], batch.get("input_ids")
    if isinstance(value, list | tuple):
        return 0
    if not isinstance(value, Tensor) or not value.ndim or name in SHARED:
        return None
    has_choices = isinstance(ids, Tensor) and ids.ndim == 3  # (B, C, T), as its positions are then
    return 1 if name == "position_ids" and value.ndim == 3 and not has_choices else 0


def num_rows(batch: Batch) -> int:
    """B, by the labels where there are some; 1 of a batch in which nothing has rows.

    Example:
        >>> import torch
        >>> num_rows({"input_ids": None, "inputs_embeds": torch.zeros(3, 5, 8)})
        3
    """
    if isinstance(labels := batch.get("labels"), Tensor) and labels.ndim:
        return len(labels)
    return max((length for name in batch if (length := _length(batch, name)) is not None), default=1)


def is_by_rows(batch: Batch) -> bool:
    """Whether every value says which part of it is a row's: not the patches of images, nor the ends of packed rows.

    Example:
        >>> import torch
        >>> is_by_rows({"labels": torch.zeros(2), "patches": torch.zeros(50, 8)})
        False
    """
    rows, simple = num_rows(batch), Tensor | str | int | float | None
    lengths = {name: _length(batch, name) for name in batch}
    return all(isinstance(batch[name], simple) if n is None else n == rows for name, n in lengths.items())


def take_rows(batch: Batch, rows: slice | Tensor) -> dict[str, Any]:
    """Some rows of a batch that `is_by_rows`, padded as they are.

    Args:
        batch: the batch.
        rows: a slice of them, or their numbers (n,).
    """

    def some(value: Any, axis: int | None) -> Any:
        if axis is None:
            return value
        if isinstance(value, Tensor):
            chosen = rows if isinstance(rows, slice) else rows.to(value.device)
            return value[(slice(None),) * axis + (chosen,)]
        return value[rows] if isinstance(rows, slice) else [value[row] for row in rows.tolist()]

    return {name: some(value, row_axis(batch, name)) for name, value in batch.items()}


def repeat_rows(batch: Batch, times: int) -> dict[str, Any]:
    """All rows of a batch that `is_by_rows`, once after another."""

    def again(value: Any, axis: int | None) -> Any:
        if isinstance(value, Tensor) and axis is not None:
            return value.repeat(*[times if at == axis else 1 for at in range(value.ndim)])
        return value if axis is None else value * times

    return {name: again(value, row_axis(batch, name)) for name, value in batch.items()}


def _length(batch: Batch, name: str) -> int | None:
    """How many rows a value has; None where it is one for all."""
    axis, value = row_axis(batch, name), batch[name]
    if axis is None:
        return None
    return int(value.shape[axis]) if isinstance(value, Tensor) else len(value)
