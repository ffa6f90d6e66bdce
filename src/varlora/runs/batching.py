"""Rows of like length in one batch, which saves padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import torch
from torch import Tensor

from varlora.io.data_sets import in_order, order_by_length
from varlora.runs.setting import Setting


def batch_by_length(
    setting: Setting, encoded: datasets.Dataset
) -> tuple[Iterable[Mapping[str, Any]], Tensor, tuple[str, ...]]:
    """Batches of encoded rows in order of length.

    Args:
        setting: makes the batches.
        encoded: the rows.

    Returns:
        The batches, the permutation back to the rows' own order (N,), and the rows' names in that order.
    """
    order = order_by_length(encoded)
    ids = tuple(str(name) for name in encoded["id"])
    if len(ids) > 1:
        encoded = in_order(encoded, order)
    return setting.batches(encoded), torch.tensor(order).argsort(), ids
