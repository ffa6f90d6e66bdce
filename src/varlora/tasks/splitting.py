"""Cutting a validation split, and taking fewer rows.

All of it is decided by a seed and noted in the task, so that a table can say what it was measured on.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from varlora.tasks.task import Task

logger = logging.getLogger(__name__)

VALIDATION_SIZE = 0.1
"""Share of the training rows that are cut where nothing else is said."""


def pick(labels: Sequence[int], size: int, *, seed: int, leave_one: bool = False) -> list[int]:
    """Positions of `size` rows drawn without replacement, each label in proportion (largest remainders).

    Args:
        labels: One label a row; all equal means a plain draw.
        size: How many rows.
        seed: Decides the draw.
        leave_one: Leave at least one row of every label behind.

    Returns:
        The drawn positions, ascending.

    Raises:
        ValueError: If there are not that many rows to draw.

    Example:
        >>> pick([0, 0, 0, 0, 1, 1], 3, seed=0)
        [1, 3, 4]
    """
    counts = Counter(labels)
    most = {label: count - leave_one for label, count in counts.items()}
    if not 0 < size <= sum(most.values()):
        allowed = (
            f"1 to {sum(most.values())}" if sum(most.values()) > 0 else "none, for each is the only one of its class"
        )
        raise ValueError(f"cannot take {size} of {len(labels)} rows; allowed: {allowed}")
    quota = {label: size * count / len(labels) for label, count in counts.items()}
    take = {label: min(int(quota[label]), most[label]) for label in counts}
    by_remainder = sorted(counts, key=lambda label: (take[label] - quota[label], label))
    while (short := size - sum(take.values())) > 0:
        for label in [label for label in by_remainder if take[label] < most[label]][:short]:
            take[label] += 1
    positions = defaultdict(list)
    for position, label in enumerate(labels):
        positions[label].append(position)
    order = random.Random(seed)
    return sorted(p for label in sorted(counts) for p in order.sample(positions[label], take[label]))


def _strata(task: Task, split: str) -> list[int]:
    rows = task.rows(split)
    return list(rows["label"]) if task.kind == "label" else [0] * len(rows)


def cut_validation(task: Task, *, size: float | int = VALIDATION_SIZE, seed: int = 0) -> Task:
    """Move some rows of "train" to a new split "validation", each class in proportion.

    A task that has a validation split already, or has no "train", comes back unchanged; a warning says so where a size
    is given that is not the default's.

    Args:
        task: The task.
        size: A fraction of the training rows (a float below 1) or a number of rows (an int).
        seed: Decides which rows.

    Raises:
        ValueError: If the size leaves one of the two splits, or one class of "train", without rows.
    """
    if "validation" in task.splits or "train" not in task.splits:
        if size != VALIDATION_SIZE:
            why = "validation rows of its own" if "validation" in task.splits else "no training rows"
            logger.warning("%s has %s: a validation size of %s cuts nothing", task.name, why, size)
        return task
    train = task.rows("train")
    if isinstance(size, float) and not 0 < size < 1:
        raise ValueError(f"a validation fraction lies between 0 and 1, got {size}; use an int for a number of rows")
    rows = max(1, round(size * len(train))) if isinstance(size, float) else size
    strata = _strata(task, "train")
    try:
        chosen = pick(strata, rows, seed=seed, leave_one=True)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}: no validation split can be cut from train: {error}") from error
    kept = sorted(set(range(len(train))) - set(chosen))
    how = ", each class in proportion" if len(set(strata)) > 1 else ""
    note = f"validation: {rows} rows cut from the {len(train)} of train, seed {seed}{how}"
    logger.info("%s: %s", task.name, note)
    return task.with_splits({"train": train.select(kept), "validation": train.select(chosen)}, note)


def limit_split(task: Task, split: str, size: int, *, seed: int = 0) -> Task:
    """Keep only `size` rows of one split, each class in proportion; a split no larger than that stays whole.

    Raises:
        ValueError: If the size is below 1 or the split does not exist.
    """
    rows = task.rows(split)
    if size < 1:
        raise ValueError(f"task {task.name!r}: cannot keep {size} rows of {split}; allowed: 1 or more")
    if size >= len(rows):
        return task
    note = f"{split}: {size} of {len(rows)} rows, seed {seed}"
    logger.info("%s: %s", task.name, note)
    return task.with_splits({split: rows.select(pick(_strata(task, split), size, seed=seed))}, note)


def keep_num_choices(task: Task, num_choices: int) -> Task:
    """Keep only the questions with so many choices, in every split: e.g. the papers' four-choice filter of ARC.

    Raises:
        ValueError: If it is no task of choices, or a split has no such question.
    """
    if task.kind != "choice":
        raise ValueError(f"task {task.name!r} is of the kind {task.kind!r}; only a choice task can be filtered so")
    splits, notes = {}, []
    for split, rows in task.splits.items():
        kept = [i for i, n in enumerate(rows["num_choices"]) if n == num_choices]
        if not kept:
            raise ValueError(f"task {task.name!r}: no question of {split} has {num_choices} choices")
        splits[split] = rows.select(kept)
        notes.append(f"{split}: the {len(kept)} of {len(rows)} questions with {num_choices} choices")
    return replace(
        task,
        answers=task.answers[:num_choices],
        continuations=task.continuations[:num_choices],
        splits=splits,
        notes=(*task.notes, *notes),
    )
