"""Rows of like length in one batch, which saves padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor

from varlora.io.data_sets import in_order
from varlora.runs.setting import Setting


def by_length(
    setting: Setting, encoded: datasets.Dataset
) -> tuple[Iterable[Mapping[str, Any]], Tensor, tuple[str, ...]]:
    """Batches of encoded rows in order of length.

    Args:
        setting: makes the batches.
        encoded: the rows.

    Returns:
        The batches, the permutation back to the rows' own order (N,), and the rows' names in that order.
    """
    order = torch.tensor([_length(ids) for ids in encoded["input_ids"]]).argsort(stable=True)
    ids = tuple(str(name) for name in encoded["id"])
    if len(ids) > 1:
        encoded = in_order(encoded, order.tolist())
    return setting.batches(encoded), order.argsort(), ids


def _length(ids: Sequence[Any]) -> int:
    """Of a row, or of its longest choice."""
    return max(map(len, ids)) if isinstance(ids[0], Sequence) else len(ids)
