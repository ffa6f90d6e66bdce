"""A threshold on how sure the model is, at which a wanted accuracy of the answers is guaranteed, for any n.

Let v_m be the (m+1)-th largest sureness of n labelled rows, and E_m the number of wrong answers among the rows above
it. Given v_m, those rows are independent draws of "rows above v_m", so that

    E_m ~ Binomial(number above, R(v_m)),      R(v) = the error rate of all new rows above v

For K shares m/n fixed in advance (100 %, 95 %, …, as long as the rows suffice for K tests):

    p_m = P(Binomial(number above, 1 − target) ≤ E_m),      chosen: the largest share with p_m ≤ δ/K

By the union bound, with probability at least 1 − δ over the n rows no share with R(v_m) > 1 − target is chosen. Nothing
is assumed of the scores: ties, and accuracies that do not rise with the threshold, are covered.

Source: Geifman and El-Yaniv, arXiv:1705.08500 (a bound on the risk at a chosen coverage); Angelopoulos et al.,
arXiv:2110.01052 (the choice as a test of several hypotheses). The K fixed shares are our choice, in place of the
former's binary search, whose steps depend on the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from scipy.special import bdtr, betaincinv
from torch import Tensor

from varlora.metrics.conformal import Exact, as_fraction
from varlora.metrics.inputs import as_examples
from varlora.metrics.ranking import risk_coverage

DELTA = 0.05
SHARES = tuple(Fraction(percent, 100) for percent in range(100, 0, -5))
"""How much may be answered, tried from the largest down."""
_MOST_TIMES = 100
"""So many times as many rows are thought of, no more."""


class CannotGuaranteeError(ValueError):
    """No share of the rows can be answered with the wanted accuracy, as far as these rows can tell.

    Attributes:
        best: the accuracy that can be guaranteed at best, by answering some share of the rows.
        rows_needed: about how many rows would do if the answers stay as right as they are here; None if far too many.
    """

    def __init__(self, message: str, *, best: float, rows_needed: int | None) -> None:
        super().__init__(message)
        self.best, self.rows_needed = best, rows_needed


@dataclass(frozen=True, kw_only=True)
class AccuracyThreshold:
    """A threshold for a wanted accuracy among the answered rows, and what it promises.

    Attributes:
        value: a row is answered if its sureness is at least this; −∞ answers all.
        accuracy: the wanted accuracy.
        delta: the chance, over the choice of the rows, that the true accuracy is lower.
        rows: how many labelled rows it was chosen on.
        answered: how many of those it answers.
        errors: how many of those answers are wrong.
        tests: K, how many shares could have been chosen.
        bound: the accuracy that is guaranteed at this threshold, at least the wanted one.
    """

    value: float
    accuracy: float
    delta: float
    rows: int
    answered: int
    errors: int
    tests: int
    bound: float

    @property
    def sentence(self) -> str:
        """The promise, in words."""
        return (
            f"At least {100 * self.accuracy:.4g} % of the answers to new rows like these {self.rows} are right, for "
            f"{100 * (1 - self.delta):.4g} % of the draws of such {self.rows}; {self.answered} of these are answered, "
            f"{self.errors} wrongly."
        )


def threshold_for_accuracy(
    sure: Tensor, correct: Tensor, accuracy: Exact, *, delta: float = DELTA
) -> AccuracyThreshold:
    """The threshold that answers most rows among those at which a wanted accuracy is guaranteed.

    Args:
        sure: (n,) sureness of rows that the model was not trained on and that are not reported.
        correct: (n,) whether each answer is right.
        accuracy: the wanted accuracy among answered rows, in (0, 1).
        delta: the chance, over the choice of the n rows, that the true accuracy is lower.

    Raises:
        CannotGuaranteeError: these rows guarantee it for no share; the message says what can be promised.
        ValueError: an argument does not fit.

    Example:
        >>> sure = torch.linspace(1.0, 0.0, 1000)
        >>> threshold = threshold_for_accuracy(sure, sure > 0.2, "0.9")            # the least sure fifth is wrong
        >>> threshold.answered, threshold.errors, threshold.bound > 0.9
        (850, 50, True)
    """
    sure, correct = as_examples(sure, correct, name="sureness")
    wanted = as_fraction(accuracy, name="accuracy")
    if not 0 < wanted < 1:
        raise ValueError(f"accuracy is {accuracy}: give one in (0, 1), e.g. 0.95; 1 cannot be guaranteed.")
    check_delta(delta)
    rows, risk = len(sure), 1 - float(wanted)
    sizes = _sizes(rows, float(wanted), delta)
    doubt, (_, curve) = (-sure).sort().values, risk_coverage(sure, correct)
    groups = [_above(doubt, curve, size) for size in sizes]
    for value, answered, errors in groups:
        if bdtr(errors, answered, risk) <= delta / len(sizes) and answered > 0:
            return AccuracyThreshold(
                value=value,
                accuracy=float(wanted),
                delta=delta,
                rows=rows,
                answered=answered,
                errors=errors,
                tests=len(sizes),
                bound=_bound(errors, answered, delta / len(sizes)),
            )
    raise _cannot(groups, rows, float(wanted), delta)


def fewest_answers(accuracy: float, delta: float) -> int:
    """How many answers, all of them right, guarantee an accuracy.

    Example:
        >>> fewest_answers(0.95, 0.05)
        59
    """
    return max(1, math.ceil(math.log(delta) / math.log(accuracy) - 1e-12))


def cut_above(falling: Tensor, size: int) -> float:
    """The threshold just above the (m + 1)-th largest sureness; −∞ where all n rows are answered.

    Args:
        falling: (n,) sureness, float64, the highest first.
        size: m, at most n.
    """
    if size == len(falling):
        return -math.inf
    return float(torch.nextafter(falling[size], torch.tensor(math.inf, dtype=torch.float64)))


def check_delta(delta: float) -> None:
    """Refuses what is no chance that a guarantee may fail."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: give the chance that the guarantee may fail, in (0, 1), e.g. 0.05.")


def _sizes(rows: int, accuracy: float, delta: float) -> list[int]:
    """How many rows may be answered: as many of the shares as leave each test a chance to succeed."""
    sizes = list(dict.fromkeys(math.ceil(rows * share) for share in SHARES))
    tests = max((k for k in range(1, len(sizes) + 1) if sizes[k - 1] >= fewest_answers(accuracy, delta / k)), default=1)
    return sizes[:tests]


def _above(doubt: Tensor, risk: Tensor, size: int) -> tuple[float, int, int]:
    """`cut_above`, how many rows it answers, and how many of them wrongly; by rising doubt (n,) and the risk (n,)."""
    answered = size if size == len(doubt) else int(torch.searchsorted(doubt, doubt[size]))
    errors = round(float(risk[answered - 1]) * answered) if answered else 0
    return cut_above(-doubt, size), answered, errors


def _bound(errors: int, answered: int, delta: float) -> float:
    """The accuracy that so many answers guarantee, but for a chance of delta."""
    return float(betaincinv(answered - errors, errors + 1, delta)) if answered > errors else 0.0


def _cannot(groups: list[tuple[float, int, int]], rows: int, accuracy: float, delta: float) -> CannotGuaranteeError:
    each = delta / len(groups)
    best, share, errors, answered = max((_bound(e, a, each), a / rows, e, a) for _, a, e in groups)
    sentences = [
        f"an accuracy of {100 * accuracy:.4g} % among the answered cannot be guaranteed with {100 * (1 - delta):.4g} % "
        f"probability from {rows} rows."
    ]
    if best > 0:
        sentences.append(
            f"The best that they guarantee is {100 * best:.1f} %, by answering the surest {100 * share:.0f} % "
            f"({answered - errors} of {answered} right)."
        )
    needed = min(
        (n for _, a, e in groups if (n := _rows_needed(e / a if a else 1.0, a / rows, rows, accuracy, delta))),
        default=None,
    )
    if needed is None:
        sentences.append(
            f"{_MOST_TIMES} times as many would not do: no share that is large enough to judge is right clearly more "
            "often."
        )
    else:
        sentences.append(f"About {needed} rows would do if the answers stay as right as they are on these.")
    sentences.append("Ask for less, or give more labelled rows.")
    return CannotGuaranteeError(" ".join(sentences), best=best, rows_needed=needed)


def _rows_needed(error_rate: float, share: float, rows: int, accuracy: float, delta: float) -> int | None:
    """About how many rows would pass a test at the strictest level with this error rate; None if far too many."""
    if error_rate >= 1 - accuracy:
        return None

    def enough(n: int) -> bool:
        answered = math.floor(n * share)
        return bool(bdtr(math.ceil(answered * error_rate), answered, 1 - accuracy) <= delta / len(SHARES))

    low, high = rows, 2 * rows
    while not enough(high):
        low, high = high, 2 * high
        if high > _MOST_TIMES * rows:
            return None
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    unit: int = 10 ** max(0, len(str(high)) - 2)
    return -(-high // unit) * unit  # two digits, upwards
