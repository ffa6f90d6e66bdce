"""A posterior as `varlora tune` chose to predict with it, and as training left it.

What was chosen is kept beside the posterior (`meta.tuned`), not done to it: the trained tensors stay, the choice can be
made again from them, and taken back. Applied, it is

    prune (if it says so)  →  covariance times τ (τ = 0: the point alone)  →  the logit temperature T of its mode

Where neither the caller nor `varlora tune` says how many draws a prediction is to average, it draws only if labelled
validation rows have shown that draws help (`meta.diagnostics["sampling"]`, which a run leaves); else it takes the
point, one pass in place of many, and says so.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from varlora.ops import prune, temper
from varlora.posterior import Mixture, PointMass, Posterior, PosteriorMeta

logger = logging.getLogger(__name__)

SAMPLES = 10
"""Draws of a prediction where nobody says how many."""


def as_tuned(q: Posterior) -> Posterior:
    """The posterior with what `varlora tune` chose applied to it; itself where nothing was chosen.

    Args:
        q: the posterior, as it was loaded.

    Returns:
        A posterior whose `meta.tuned` is None, so that nothing is applied twice.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> chosen = {"temperature": 4.0, "samples": 8, "mode": "samples", "logit_temperature": 1.5}
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)},
        ...                      meta=PosteriorMeta(tuned=chosen))
        >>> found = as_tuned(q)
        >>> found.variance["w"], found.meta.logit_temperature_of("samples"), found.meta.logit_temperature_of("mean")
        (tensor([4.]), 1.5, 1.0)
    """
    tuned = q.meta.tuned
    if tuned is None:
        return q
    found = without_tuning(q)
    if (pruned := tuned.get("pruned")) is not None:
        found = prune(found, pruned["fraction"], by=pruned["by"])
    if tuned["temperature"] == 0:
        found = PointMass(mean=found.point, meta=found.meta)
    elif tuned["temperature"] != 1:
        found = temper(found, tuned["temperature"])
    mode, divisor = tuned["mode"], tuned["logit_temperature"]
    if mode == "mean":
        return _with_meta(found, dataclasses.replace(found.meta, logit_temperature=divisor))
    by_mode = {**(found.meta.logit_temperature_by_mode or {}), mode: divisor}
    return _with_meta(found, dataclasses.replace(found.meta, logit_temperature_by_mode=by_mode))


def without_tuning(q: Posterior) -> Posterior:
    """The posterior as training left it: what `varlora tune` chose, and its line of the history, are left out.

    Example:
        >>> import torch
        >>> chosen = {"temperature": 1.0, "samples": 0, "mode": "mean", "logit_temperature": 1.5}
        >>> q = PointMass(mean={"w": torch.ones(1)}, meta=PosteriorMeta(tuned=chosen, history=({"op": "tune"},)))
        >>> without_tuning(q).meta == PosteriorMeta()
        True
    """
    if q.meta.tuned is None:
        return q
    last = q.meta.history[-1:]
    history = q.meta.history[:-1] if last and last[0].get("op") == "tune" else q.meta.history
    return _with_meta(q, dataclasses.replace(q.meta, tuned=None, history=history))


def with_tuning(q: Posterior, tuned: Mapping[str, Any]) -> Posterior:
    """The posterior as training left it, with a choice beside it in place of any other: `meta.tuned`.

    Example:
        >>> import torch
        >>> chosen = {"temperature": 1.0, "samples": 0, "mode": "mean", "logit_temperature": 1.5}
        >>> as_tuned(with_tuning(PointMass(mean={"w": torch.ones(1)}), chosen)).meta.logit_temperature
        1.5
    """
    trained = without_tuning(q)
    return _with_meta(trained, dataclasses.replace(trained.meta, tuned=tuned))


def settled(q: Posterior, samples: int | None, otherwise: int = SAMPLES) -> tuple[Posterior, int]:
    """The posterior and the number of draws to judge its sampling by, whether or not draws help (see `by_default`).

    Args:
        q: the posterior, tuned or not.
        samples: what the caller asks for; None takes what was tuned, or else `otherwise`.
        otherwise: draws of a posterior that was not tuned.

    Raises:
        ValueError: draws are asked for, and the mean was chosen.

    Example:
        >>> import torch
        >>> settled(PointMass(mean={"w": torch.ones(1)}), None)[1]
        10
    """
    tuned = q.meta.tuned
    if tuned is None:
        return q, otherwise if samples is None else samples
    if tuned["temperature"] == 0 and samples:
        raise ValueError(
            f"{samples} draws are asked for, but `varlora tune` chose this posterior's mean (temperature 0), which has "
            "none. Leave the number of draws out, or draw from the trained posterior: --untuned, in Python "
            "varlora.without_tuning(q)."
        )
    return as_tuned(q), int(tuned["samples"]) if samples is None else samples


def by_default(q: Posterior, samples: int | None, otherwise: int = SAMPLES) -> tuple[Posterior, int]:
    """The posterior and the number of draws to predict with.

    Args:
        q: the posterior, tuned or not.
        samples: what the caller asks for; None takes what was tuned, or else `otherwise` draws where they have been
            shown to help, and the point where they have not (a line of the log says why).
        otherwise: draws of a posterior that was not tuned.

    Raises:
        ValueError: draws are asked for, and the mean was chosen.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> def judged(helps):
        ...     meta = PosteriorMeta(diagnostics={"sampling": {"helps": helps, "why": "" if helps else "no gain"}})
        ...     return DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)}, meta=meta)
        >>> by_default(judged(True), None)[1], by_default(judged(False), None)[1], by_default(judged(False), 4)[1]
        (10, 0, 4)
    """
    if samples is None and otherwise and (why := why_the_point(q)):
        logger.warning("predicting with the point, in one pass: %s. samples=%d averages draws", why, otherwise)
        return q, 0
    return settled(q, samples, otherwise)


def why_the_point(q: Posterior) -> str:
    """Why a posterior is predicted with at its point where nobody says how many draws; empty where it draws.

    A mixture always averages its members, which is what it is for; a tuned posterior does what was tuned.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> why_the_point(DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)}))
        'no labelled validation rows have said whether draws help'
    """
    if isinstance(q, (PointMass, Mixture)) or q.meta.tuned is not None:
        return ""
    if changed := [operation.get("op", "an operation") for operation in q.meta.history]:
        return f"whether draws help was not measured since the posterior was changed ({', '.join(map(str, changed))})"
    said = (q.meta.diagnostics or {}).get("sampling")
    if not isinstance(said, Mapping):
        return "no labelled validation rows have said whether draws help"
    return "" if said.get("helps") is True else str(said.get("why") or "draws were not shown to help")


def _with_meta(q: Posterior, meta: PosteriorMeta) -> Posterior:
    return dataclasses.replace(q, meta=meta)  # type: ignore[type-var]
