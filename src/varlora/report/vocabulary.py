"""The report's words for verdicts, settings and posteriors; those for metrics are in `varlora.metrics.table`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

Verdict = Literal["better", "worse", "equal", "unclear", "one seed"]
"""What a difference shows (`varlora.report.seeds`)."""
MARKS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "equal": "=", "unclear": "○", "one seed": "◇"}
"""A sign for each verdict, so that none depends on its colour."""


def show(value: object) -> str:
    """A setting as a reader wants it.

    Example:
        >>> show(1e7), show(3e-4), show(True), show(["q_proj", "v_proj"]), show(None)
        ('10,000,000', '0.0003', 'yes', 'q_proj, v_proj', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value))
    return str(value)


def coldness(ess: float, num_examples: int, hessian_moved: float | None, *, fit: bool = False) -> str:
    """What λ against N makes of the posterior: nothing where h was not learned, for then the variance is a choice.

    Args:
        ess: λ.
        num_examples: N.
        hessian_moved: median of |h/h0 - 1|; None where it is not known, which counts as not learned.
        fit: whether the variance follows the fit, which has neither prior nor Hessian.

    Example:
        >>> coldness(1e6, 300, hessian_moved=0.8)
        "N is 300, so λ/N = 3,330: a cold posterior, narrower than Bayes' rule at N"
        >>> coldness(30_000, 300, hessian_moved=0.0)
        "N is 300, so λ/N = 100: no distance from Bayes' rule, since h was not learned"
    """
    ratio = ess / num_examples
    if fit:
        kind = "it scales the noise, and is no distance from Bayes' rule"
    elif hessian_moved is None or hessian_moved < LEARNED:
        kind = "no distance from Bayes' rule, since h was not learned"
    elif ratio > 1.05:
        kind = "a cold posterior, narrower than Bayes' rule at N"
    elif ratio < 0.95:
        kind = "a warm posterior, wider than Bayes' rule at N"
    else:
        kind = "plain Bayes"
    return f"N is {num_examples:,}, so λ/N = {show(float(f'{ratio:.3g}'))}: {kind}"


def fitted(fit: Mapping[str, Any]) -> str:
    """Where a variance that follows the fit came from (`varlora.ivon.fit_variance`).

    Args:
        fit: of one parameter group, as in `meta.diagnostics`.

    Example:
        >>> fitted({"mean_loss": 0.5, "lr_sum": 0.25, "variance": 0.001353})
        'of all trained weights alike, learned for none: it follows the learning rates (sum 0.25) and the ...'
        >>> fitted({"mean_loss": None, "lr_sum": 0.0, "variance": 1e-10})
        'of all trained weights alike: no training loss was seen'
    """
    alike, loss = "of all trained weights alike", fit["mean_loss"]
    if loss is None:
        return f"{alike}: no training loss was seen"
    return (
        f"{alike}, learned for none: it follows the learning rates (sum {show(fit['lr_sum'])}) and the mean training "
        f"loss under noise ({loss:.3g} nats, a mean probability of {100 * math.exp(-max(loss, 0)):.0f} %)"
    )


LEARNED = 0.5
"""Median of |h/h0 - 1| from which on the variance is called learned."""


def learning(hessian_moved: float) -> str:
    """What the median of |h/h0 - 1| says of the variance."""
    if hessian_moved < LEARNED:
        return "the variance is mostly the one it was started with, not learned"
    return "the variance was learned from the data"
