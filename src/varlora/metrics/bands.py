"""Bands of confidence with names, such as high, medium and low, and how often their answers are right.

A band holds the rows whose sureness is at least its cut and below the cut of the band above. Cuts are given, and then
the accuracy of each band is measured, with its exact interval. Or wanted accuracies are, and cuts are chosen: of the
shares 0 %, 10 %, …, 100 % of the n rows, the first band takes as many of the surest as guarantee its accuracy, the next
as many of the others, and so on; the last takes what is left, and promises nothing.

Given the two order statistics that bound them, the rows strictly between are independent draws of "rows between"; the
bounding row itself is not counted. Each of the P pairs of shares is one binomial test at δ/P
(`varlora.metrics.selective_accuracy`), so that with probability at least 1 − δ over the n rows every band keeps its
promise, however the bands were chosen among them. That is exact of scores without ties. Tied rows are in one band all
together, and are all counted there but one, which is right but for less than a row.

Source: as of `varlora.metrics.selective_accuracy`; the pairs are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import bdtr
from torch import Tensor

from varlora.metrics.inputs import as_examples
from varlora.metrics.resampling import clopper_pearson
from varlora.metrics.selective_accuracy import DELTA, check_delta, cut_above

SHARES = 10
"""Into how many parts the rows are cut before bands are made of them."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """A band of confidence.

    Attributes:
        name: what it is called.
        cut: rows of at least this sureness that are in no band above; −∞ for the last.
        wanted: the accuracy that is guaranteed; None where its cut was given, and for the last.
        rows: how many of the labelled rows are in it.
        right: how many of those were right.
    """

    name: str
    cut: float
    rows: int
    right: int
    wanted: float | None = None

    @property
    def accuracy(self) -> float:
        """Of the labelled rows in it; NaN where there is none."""
        return self.right / self.rows if self.rows else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the accuracy; of chosen cuts it is only about right, and the guarantee counts."""
        return clopper_pearson(self.right, self.rows)


def bands_at(sure: Tensor, correct: Tensor, names: Sequence[str], cuts: Sequence[float]) -> tuple[Band, ...]:
    """Bands whose cuts are given.

    Args:
        sure: (n,) sureness of labelled rows.
        correct: (n,) whether each answer is right.
        names: of the bands, the surest first.
        cuts: falling, one fewer than names.

    Raises:
        ValueError: the cuts do not fall, or an argument does not fit.

    Example:
        >>> sure = torch.tensor([0.95, 0.91, 0.7, 0.4])
        >>> for band in bands_at(sure, torch.tensor([1, 1, 0, 0]), ("high", "medium", "low"), (0.9, 0.5)):
        ...     print(band.name, band.right, "of", band.rows)
        high 2 of 2
        medium 0 of 1
        low 0 of 1
    """
    sure, correct = as_examples(sure, correct, name="sureness")
    _check_names(names, cuts)
    if any(not math.isfinite(cut) for cut in cuts) or list(cuts) != sorted(set(cuts), reverse=True):
        raise ValueError(f"the bands' cuts are {', '.join(f'{cut:g}' for cut in cuts)}; they must fall.")
    return _counted(sure, correct, names, (*cuts, -math.inf), (None,) * len(names))


def bands_for_accuracies(
    sure: Tensor, correct: Tensor, names: Sequence[str], accuracies: Sequence[float], *, delta: float = DELTA
) -> tuple[Band, ...]:
    """Bands whose answers are right in wanted shares, guaranteed.

    Args:
        sure: (n,) sureness of rows that the model was not trained on and that are not reported.
        correct: (n,) whether each answer is right.
        names: of the bands, the surest first; the last takes what is left.
        accuracies: in (0, 1), one fewer than names, falling.
        delta: the chance, over the choice of the n rows, that some band's true accuracy is lower.

    Returns:
        The bands. One whose accuracy cannot be guaranteed for any rows has the cut of the band above (+∞ for the
        first), and no row.

    Raises:
        ValueError: an argument does not fit.

    Example:
        >>> sure = torch.linspace(1, 0, 1000)
        >>> correct = (torch.arange(1000) % 10 != 9) | (sure > 0.7)                # 300 right, then nine of ten
        >>> for band in bands_for_accuracies(sure, correct, ("high", "medium", "low"), (0.95, 0.8)):
        ...     print(band.name, band.right, "of", band.rows)
        high 300 of 300
        medium 630 of 700
        low 0 of 0
    """
    sure, correct = as_examples(sure, correct, name="sureness")
    _check_names(names, accuracies)
    if any(not 0 < one < 1 for one in accuracies) or list(accuracies) != sorted(set(accuracies), reverse=True):
        raise ValueError(
            f"the bands' accuracies are {', '.join(f'{one:g}' for one in accuracies)}; they must fall, between 1 and 0."
        )
    check_delta(delta)
    rows = len(sure)
    falling, order = sure.sort(descending=True, stable=True)
    wrong = torch.cat([torch.zeros(1, dtype=torch.float64), (1 - correct[order].double()).cumsum(0)])
    sizes = list(dict.fromkeys(math.ceil(rows * part / SHARES) for part in range(SHARES + 1)))
    each = delta / (len(sizes) * (len(sizes) - 1) / 2)
    cuts, start, above = [], 0, math.inf
    for wanted in accuracies:
        for size in reversed(sizes):
            cut = cut_above(falling, size)
            end = rows if size == rows else int((falling >= cut).sum())  # without rows that are tied with the next
            if end <= start:
                break
            first = start if start == 0 else start + 1  # the row that bounds the band above
            if first < end and bdtr(float(wrong[end] - wrong[first]), end - first, 1 - wanted) <= each:
                start, above = end, cut
                break
        cuts.append(above)
    return _counted(sure, correct, names, (*cuts, -math.inf), (*accuracies, None))


def in_bands(sure: Tensor, bands: Sequence[Band]) -> list[str]:
    """The name of each row's band.

    Args:
        sure: (N,).
        bands: the surest first.

    Example:
        >>> bands = (Band(name="high", cut=0.9, rows=1, right=1), Band(name="low", cut=-math.inf, rows=1, right=0))
        >>> in_bands(torch.tensor([0.95, 0.5]), bands)
        ['high', 'low']
    """
    return [next(band.name for band in bands if value >= band.cut) for value in sure.tolist()]


def _counted(
    sure: Tensor, correct: Tensor, names: Sequence[str], cuts: Sequence[float], wanted: Sequence[float | None]
) -> tuple[Band, ...]:
    bands, above = [], math.inf
    for name, cut, accuracy in zip(names, cuts, wanted, strict=True):
        within = (sure >= cut) & (sure < above) if above < math.inf else sure >= cut
        bands.append(
            Band(name=name, cut=cut, wanted=accuracy, rows=int(within.sum()), right=int(correct[within].sum()))
        )
        above = min(above, cut)
    return tuple(bands)


def _check_names(names: Sequence[str], values: Sequence[float]) -> None:
    if len(names) != len(values) + 1 or len(names) < 2:
        raise ValueError(
            f"there are {len(names)} bands and {len(values)} numbers; give one for each band but the last, which takes "
            "what is left."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"two bands have one name: {', '.join(names)}.")
