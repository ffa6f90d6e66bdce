r"""When held-out rows are asked, and how many: for a tenth of the training's work, however short it is.

Work is counted in forward passes of a row, and not in seconds, so that a resumed run and every rank decide alike:

    a row of a training step      2 + t        forward and backward, with gradients of the share t of the weights
    a row that is asked           5            at the mean and at two pairs of opposite draws

so that the rows that may be asked in all are R = (.1 · work of the training − checks before it) / 5, in 24
measurements, or as many as R pays for, of at least 64 rows, and of more where R pays for more. Where only upper layers
train, a backward pass stops at them, and the draws share the layers below: a row of a training step and one that is
asked are both cheaper, alike where these layers are cached. A held-out row with more tokens than a training row has
counts as many times more.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainingArguments

COST = 0.1
"""Of the training's work."""
BEGUN_AFTER = 0.2
"""Share of the training before the first measurement: what a model says while it learns the task's outline passes."""
ROWS_PER_MEASUREMENT = 64
"""At least, where there are so many and the budget pays for them."""
MOST_MEASUREMENTS = 24
FEWEST_ASKED = 16
"""In all, where there are so many: what fewer say would not be heard (`varlora.ivon.ess_control`)."""
ROWS_OF_CHECK = 8
"""Predicted before the training."""
PAIRS = 2
PASSES = 2 * PAIRS + 1
"""Of a row that is asked: the draws, and the mean."""
PASSES_TO_COMPARE = 8
"""By which it is seen whether draws can be rows: two rows under two sets of weights, both ways."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When held-out rows are asked.

    Attributes:
        steps: of the training, after which they are.
        rows: how many each time.
        affordable: rows that the budget pays for in all.
    """

    steps: tuple[int, ...]
    rows: int
    affordable: int


def work_of_a_row(model: nn.Module) -> float:
    """Forward passes that training on a row costs.

    Example:
        >>> work_of_a_row(nn.Linear(2, 2))
        3.0
    """
    parameters = list(model.parameters())
    return 2 + sum(p.numel() for p in parameters if p.requires_grad) / sum(p.numel() for p in parameters)


def own_rows_per_step(args: TrainingArguments, data: Any) -> float:
    """Rows that this process trains on in a step, on average over an epoch, whose last batch may hold fewer.

    Args:
        args: of the training.
        data: the training set, of whatever kind.
    """
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    own = len(data) / args.world_size if isinstance(data, Sized) else 0
    return own / math.ceil(own / rows) if own else rows


def work_of_a_step(model: nn.Module, args: TrainingArguments, data: Any) -> float:
    """Forward passes of a row that a training step of this process costs."""
    return work_of_a_row(model) * own_rows_per_step(args, data)


def measuring_plan(
    rows: int, *, work: float, steps: int, begin: int, end: int, unit: int = 1, length: float = 1.0
) -> Plan:
    """When to ask, and how many rows each time; see the module.

    Args:
        rows: that there are.
        work: of a training step, in forward passes of a training row.
        steps: of the training.
        begin: the step after which rows may be asked.
        end: the last step after which they may be; the last measurement is there.
        unit: rows that can only be asked together.
        length: tokens of a held-out row, in those of a training row.

    Example:
        >>> measuring_plan(256, work=3 * 16, steps=1000, begin=200, end=1000).steps[-2:]
        (942, 1000)
        >>> measuring_plan(256, work=3 * 8, steps=80, begin=16, end=80)
        Plan(steps=(80,), rows=35, affordable=35)
    """
    budget = COST * work * steps / length - max(ROWS_OF_CHECK, unit) - PASSES_TO_COMPARE
    affordable = max(int(budget / PASSES), 0)
    wanted = min(max(ROWS_PER_MEASUREMENT, affordable // MOST_MEASUREMENTS), rows)
    if FEWEST_ASKED <= affordable < wanted:
        wanted = affordable
    asked = max(wanted // unit, 1) * unit
    count = max(min(MOST_MEASUREMENTS, affordable // asked, end - begin), 0)
    return Plan(
        steps=tuple(begin + (end - begin) * (k + 1) // count for k in range(count)), rows=asked, affordable=affordable
    )
