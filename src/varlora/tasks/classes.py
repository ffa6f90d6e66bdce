"""The classes of a task with labels: their names, and whether two of them are one that is spelt in two ways."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from varlora.tasks.rows import Records
from varlora.tasks.task import OUT_OF_SCOPE


def class_names(sources: Mapping[str, Records], given: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes of text/label records, in order: those given, or the labels of "train", sorted.

    Args:
        sources: Split name to its records.
        given: Names that are to be taken as they are.

    Raises:
        ValueError: If there are fewer than two, a label is none, or two labels look like one class.
    """
    if given is not None:
        return check_label_names(given)
    if "train" not in sources:
        raise ValueError("without a train split the label names must be given")
    train = sources["train"]
    labels: set[Any] = set()
    for index, row in enumerate(train.rows):
        label = row["label"]
        if isinstance(label, float):
            raise train.error(index, "label", label, "an integer, written without a point (1, not 1.0), or a string")
        if isinstance(label, bool) or not isinstance(label, (int, str)) or not str(label).strip():
            raise train.error(index, "label", label, "an integer or a string that is not empty")
        if labels and isinstance(label, str) is not isinstance(next(iter(labels)), str):
            raise train.error(index, "label", label, "one type of label in a file: integers or strings")
        if label != OUT_OF_SCOPE:
            labels.add(label)
    if isinstance(next(iter(labels), None), str):
        _check_spellings(train, labels)
    return check_label_names(sorted(labels), where=f"{train.where}, field 'label'")


def check_label_names(names: Sequence[object], *, where: str = "label_names") -> tuple[str, ...]:
    """The names of classes as strings, once they are two or more, different and not empty.

    Args:
        names: In order.
        where: What they were read from, for the error.

    Raises:
        ValueError: If they are not.
    """
    checked = tuple(str(name) for name in names)
    if not all(name.strip() for name in checked):
        raise ValueError(f"{where}: label names must be strings that are not empty, got {checked}")
    if len(checked) < 2 or len(set(checked)) < len(checked):
        raise ValueError(f"{where}: a label task needs two or more different label names, got {checked}")
    return checked


def _check_spellings(records: Records, labels: Collection[str]) -> None:
    """Refuses labels that differ in case, spaces or the form of their characters alone."""
    counts = Counter(row["label"] for row in records.rows)
    alike: dict[str, list[str]] = {}
    for label in sorted(labels):
        alike.setdefault(_plain(label), []).append(label)
    ambiguous = [group for group in alike.values() if len(group) > 1]
    if ambiguous:
        listed = "; ".join(", ".join(f"{label!r} ({counts[label]} rows)" for label in group) for group in ambiguous)
        raise ValueError(
            f"{records.where}, field 'label': spellings of what may be one class: {listed}. Write them alike; or, if "
            "they are different classes, name every class in label_names (--label_names_file, a JSON list)"
        )


def _plain(label: str) -> str:
    """A label without what the eye passes over: case, spaces around, characters of one look or of none."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", label).casefold() if unicodedata.category(c) != "Cf")
    return " ".join(seen.split())
