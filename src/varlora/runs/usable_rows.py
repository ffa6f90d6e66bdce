"""Which rows may decide anything: those with an answer that are not among the rows that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from varlora.tasks import Task
from varlora.tasks.overlap import without_case_and_spaces
from varlora.tasks.task import VALIDATION


class UsableRows(NamedTuple):
    """Which rows may decide something.

    Attributes:
        kept: (N,) whether a row may decide anything.
        left_out: how many rows with an answer may not, since they are reported.
    """

    kept: Tensor
    left_out: int


def exclude_reported(answered: Tensor, prompts: Sequence[str], task: Task, splits: Sequence[str]) -> UsableRows:
    """Which rows may be chosen on: those with an answer whose prompts are not among the rows that are reported.

    Case and spaces aside, as rows are told from each other in a run's notes (`varlora.tasks.overlap`).

    Args:
        answered: (N,) whether a row has an answer.
        prompts: of the rows; not looked at where nothing is reported.
        task: whose rows are reported.
        splits: which of them; those that the task lacks do not matter.
    """
    reported = {prompt for split in splits if split in task.splits for prompt in task.rows(split)["prompt"]}
    if not reported:
        return UsableRows(answered, 0)
    shown = set(map(without_case_and_spaces, reported))
    new = [without_case_and_spaces(prompt) not in shown for prompt in prompts]
    kept = answered & torch.tensor(new, dtype=torch.bool)
    return UsableRows(kept, int(answered.sum() - kept.sum()))


def usable_rows(task: Task) -> UsableRows:
    """The validation rows with an answer that are not test rows, too; N is 0 where the task has none."""
    if VALIDATION not in task.splits:
        return UsableRows(torch.zeros(0, dtype=torch.bool), 0)
    rows = task.rows(VALIDATION)
    answered = [True] * len(rows) if task.kind == "completion" else [label >= 0 for label in rows["label"]]
    return exclude_reported(torch.tensor(answered, dtype=torch.bool), rows["prompt"], task, ["test"])
