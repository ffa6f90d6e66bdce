"""What N counts: the training examples that λ and h0 are set from.

The loss of a training is a mean. Where it is one over examples, λ = N is Bayes' rule; where it is one over tokens,
as of language models, λ = N gives a row the weight of one token, and λ/N compares nothing with Bayes' rule. Rows into
which a trainer has packed several texts are counted by their texts, where it says how many there are.
"""

from __future__ import annotations

import logging
from collections.abc import Sized
from typing import Any

from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

SEQUENCES = "seq_lengths"
"""TRL's column of the lengths of the texts in a pack."""


def count_examples(loader: DataLoader[Any] | None, *, packing: bool = False) -> dict[str, Any]:
    """Count the examples of a training set.

    Args:
        loader: What the trainer reads.
        packing: Whether the trainer says that it packs texts into rows (TRL's `packing`).

    Returns:
        "examples" (N), "rows" where texts are packed, and "mean_over", what the loss is a mean over ("tokens" or
        "examples") where the columns tell.

    Raises:
        ValueError: If the set has no length.

    Example:
        >>> import datasets
        >>> packs = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4]], "seq_lengths": [[2, 1], [1]]})
        >>> count_examples(DataLoader(packs))
        {'examples': 3, 'rows': 2, 'mean_over': 'tokens'}
    """
    import datasets

    rows = getattr(loader, "dataset", None)
    if not isinstance(rows, Sized):
        raise ValueError(
            "ess and hess_init are set from the number of training examples, and this training set has no length. Pass "
            "VariationalCallback(num_examples=...), or a number as IVONConfig(ess=...), with hess_init=... "
            "where the variance is the Hessian's."
        )
    counts: dict[str, Any] = {"examples": len(rows)}
    columns = rows.features if isinstance(rows, datasets.Dataset) else {}
    if isinstance(rows, datasets.Dataset) and SEQUENCES in columns:
        packed = sum(len(lengths) for lengths in rows[SEQUENCES])
        if packed > len(rows):
            counts = {"examples": packed, "rows": len(rows)}
    elif packing:
        logger.warning(
            "texts are packed into %d rows, and N counts these, since nothing says how many texts they hold: lambda is "
            "too low by that. Give the number of texts (VariationalCallback(num_examples=...)) or lambda itself "
            "(IVONConfig(ess=...)), or pack by packing_strategy='bfd', which says it",
            len(rows),
        )
    if "labels" in columns:
        one = isinstance(columns["labels"], (datasets.Value, datasets.ClassLabel))
        counts["mean_over"] = "examples" if one else "tokens"
    elif "input_ids" in columns:
        counts["mean_over"] = "tokens"
    return counts
