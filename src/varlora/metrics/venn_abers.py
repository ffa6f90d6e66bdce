"""Venn–Abers probabilities: isotonic calibration that says how little it knows.

For one class and n labelled rows with scores s_i (its probability) and h_i (whether it is right), and a new score s,

    p0, p1   the isotonic regression of h on s at s, fitted to the n rows and (s, 0), or (s, 1)
    p        p1 / (1 − p0 + p1), the best single number between them for the log loss

One of p0 and p1 is perfectly calibrated, for any n and any model, where the rows are drawn alike: the one that belongs
to the new row's true answer. They lie close together where many rows are near s, and apart where few are. Of two
classes the second's are fitted; of more, each class's against the others (one for all draws of the posterior, of whose
average it is), and p is scaled to sum to 1, for which nothing is proved.

p0 and p1 change with s only at the n scores, so that they are tables, and what is kept with a decision. The packages
venn-abers and MAPIE compute the same; the former changes NumPy's warnings for the whole process when it is imported and
both need scikit-learn where a model is only asked, so that theirs are what ours is tested against.

Source: Vovk and Petej, arXiv:1211.0025; Vovk, Petej and Fedorova, arXiv:1511.00213 (p, and that p0 and p1 are tables).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlora.metrics.inputs import as_labels


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """p0 and p1 of a class.

    Attributes:
        scores: k different ones, rising.
        lower: p0 (k + 1), between, below and above them; `lower[j]` where j of the scores are at most s.
        upper: p1 (k + 1); `upper[j]` where j of the scores are below s.
    """

    scores: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.scores) + 1 == len(self.lower) == len(self.upper):
            raise ValueError("a Venn–Abers table needs one number more of p0 and of p1 than scores.")

    def at(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """p0 and p1 (N, 2) at new scores (N,)."""
        known = np.array(self.scores)
        lower = np.array(self.lower)[np.searchsorted(known, scores, side="right")]
        upper = np.array(self.upper)[np.searchsorted(known, scores, side="left")]
        return np.stack([lower, upper], axis=1)


@dataclass(frozen=True, kw_only=True)
class VennAbers:
    """Venn–Abers probabilities of C classes.

    Attributes:
        tables: of each class; of two classes, of the second alone.
        rows: how many labelled rows they are from.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]], dtype=torch.float64)
        >>> calibrated = fit_venn_abers(probs, torch.tensor([0, 0, 1, 1]))
        >>> new = torch.tensor([[0.85, 0.15], [0.2, 0.8]], dtype=torch.float64)
        >>> calibrated.intervals(new)[:, 1].round(decimals=3).tolist()            # p0 and p1 of the second class
        [[0.0, 0.5], [0.5, 1.0]]
        >>> calibrated.probs(new).round(decimals=3).tolist()
        [[0.667, 0.333], [0.333, 0.667]]
    """

    tables: tuple[ClassTable, ...]
    rows: int

    def intervals(self, probs: Tensor) -> Tensor:
        """p0 and p1 of each class, (N, C, 2).

        Args:
            probs: (N, C), averaged over draws; 0 is a choice that a row does not offer, whose p0 and p1 are 0.

        Raises:
            ValueError: there are tables for another number of classes.
        """
        classes = 2 if len(self.tables) == 1 else len(self.tables)
        if probs.dim() != 2 or probs.shape[1] != classes:
            raise ValueError(f"Venn–Abers tables of {classes} classes, and probabilities {tuple(probs.shape)}.")
        values = probs.double().numpy()
        if len(self.tables) == 1:
            second = self.tables[0].at(values[:, 1])
            both = np.stack([1 - second[:, ::-1], second], axis=1)
        else:
            both = np.stack([table.at(values[:, c]) for c, table in enumerate(self.tables)], axis=1)
        return torch.from_numpy(both).masked_fill((probs == 0).unsqueeze(-1), 0.0)

    def probs(self, probs: Tensor) -> Tensor:
        """p of each class (N, C), summing to 1; 0 where `probs` are 0."""
        lower, upper = self.intervals(probs).unbind(-1)
        single = upper / (1 - lower + upper)
        return single / single.sum(-1, keepdim=True)


def fit_venn_abers(probs: Tensor, labels: Tensor) -> VennAbers:
    """Venn–Abers tables from labelled rows.

    Args:
        probs: (N, C), averaged over draws, of rows that the model was not trained on; 0 is a choice that a row does not
            offer.
        labels: (N,) class indices.

    Raises:
        ValueError: there is no row, or a label is outside 0..C−1.
    """
    labels = as_labels(labels, probs)
    values, right = probs.double().numpy(), labels.numpy()
    offered = values > 0
    classes = (1,) if values.shape[1] == 2 else range(values.shape[1])
    tables = [_table(values[offered[:, c], c], right[offered[:, c]] == c) for c in classes]
    return VennAbers(tables=tuple(tables), rows=len(labels))


def _table(scores: NDArray[np.float64], hits: NDArray[np.bool_]) -> ClassTable:
    known, at = np.unique(scores, return_inverse=True)
    rows = np.bincount(at, minlength=len(known))
    right = np.bincount(at[hits], minlength=len(known))
    upper = _upper(rows.tolist(), right.tolist())
    wrong_reversed = _upper(rows[::-1].tolist(), (rows - right)[::-1].tolist())
    lower = [1 - value for value in reversed(wrong_reversed)]  # p0 is p1 of the other answer, from the other end
    return ClassTable(scores=tuple(known.tolist()), lower=tuple(lower), upper=tuple(upper))


Point = tuple[int, int]


def _upper(rows: Sequence[int], right: Sequence[int]) -> list[float]:
    """p1 before each score, and above them all, in time proportional to their number.

    Isotonic regression is the slope of the greatest convex minorant of the sums (rows, right). A right row more before
    score i moves the sums before it by (−1, −1); p1 is the slope of the edge there. From one i to the next, one point
    moves, and only corners at the left end of that edge change.

    Source: Vovk, Petej and Fedorova, arXiv:1511.00213, Algorithms 1 and 2.
    """
    sums: list[Point] = [(0, 0)]
    for count, hits in zip(rows, right, strict=True):
        sums.append((sums[-1][0] + count, sums[-1][1] + hits))
    corners: list[Point] = [(-1, -1)]
    for point in sums:
        while len(corners) > 1 and _turn(corners[-2], corners[-1], point) <= 0:
            corners.pop()
        corners.append(point)
    corners.reverse()
    slopes = []
    for count, hits in sums[1:]:
        (left, low), (end, high) = corners[-1], corners[-2]
        slopes.append((high - low) / (end - left))
        moved = (count - 1, hits - 1)
        if _turn(corners[-1], corners[-2], moved) >= 0:
            continue
        corners.pop()
        while len(corners) > 1 and _turn(moved, corners[-1], corners[-2]) <= 0:
            corners.pop()
        corners.append(moved)
    return [*slopes, 1.0]


def _turn(first: Point, second: Point, third: Point) -> int:
    """Above 0 where the way through three points turns left."""
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0])
