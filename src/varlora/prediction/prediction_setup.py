"""How a posterior is predicted with, and the posterior that does it: where a `PredictionConfig` is applied.

    prune  →  covariance times τ (the mean: the point alone)  →  the logit temperature T of the mode

What `varlora tune` chose is kept beside the posterior (`meta.tuned`), not done to it: the trained tensors stay, the
choice can be made again from them, and taken back.

Where neither the caller nor `varlora tune` says how many draws a prediction is to average, it draws only if labelled
validation rows have shown that draws help (`meta.diagnostics["sampling"]`, which a run leaves); else it takes the
point, one pass in place of many, and says so.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

from varlora.posterior import Mixture, Mode, PointMass, Posterior, PosteriorMeta, PredictionConfig
from varlora.posterior.draws import number_of_draws
from varlora.posterior.ops import prune, temper

logger = logging.getLogger(__name__)

SAMPLES = 10
"""Draws of a prediction where nobody says how many."""


def apply_config(q: Posterior, config: PredictionConfig, *, seed: int = 0) -> Posterior:
    """The posterior as training left it, with a way to predict applied to it.

    Args:
        q: the posterior; what was tuned is left aside.
        config: the way to predict.
        seed: of pruning at random.

    Returns:
        A posterior that, predicted with in the config's mode, gives its predictions. Its `meta.tuned` is None, so that
        nothing is applied twice.

    Raises:
        ValueError: the posterior cannot be pruned or its covariance scaled in that way.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)})
        >>> scaled = apply_config(q, PredictionConfig(temperature=4, logit_temperature=1.5))
        >>> scaled.variance["w"], scaled.meta.logit_temperature_of("samples"), scaled.meta.logit_temperature_of("mean")
        (tensor([4.]), 1.5, 1.0)
    """
    q, config = remove_tuning(q), config.canonical
    if config.prune > 0:
        q = prune(q, config.prune, by=config.prune_by, scope=config.prune_scope, seed=seed)
    if config.mode == "mean":
        q = q if isinstance(q, PointMass) else PointMass(mean=q.point, meta=q.meta)
    elif config.temperature != 1:
        q = temper(q, config.temperature)
    if config.logit_temperature is None:
        return q
    return _with_meta(q, q.meta.with_logit_temperatures({config.mode: config.logit_temperature}))


def apply_tuning(q: Posterior) -> Posterior:
    """The posterior with what `varlora tune` chose applied to it; itself where nothing was chosen.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> meta = PosteriorMeta(tuned=PredictionConfig(temperature=4, samples=8, logit_temperature=1.5))
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)}, meta=meta)
        >>> apply_tuning(q).variance["w"]
        tensor([4.])
    """
    return q if q.meta.tuned is None else apply_config(q, q.meta.tuned)


def remove_tuning(q: Posterior) -> Posterior:
    """The posterior as training left it: what `varlora tune` chose, and its line of the history, are left out.

    Example:
        >>> import torch
        >>> meta = PosteriorMeta(tuned=PredictionConfig(mode="mean"), history=({"op": "tune"},))
        >>> remove_tuning(PointMass(mean={"w": torch.ones(1)}, meta=meta)).meta == PosteriorMeta()
        True
    """
    if q.meta.tuned is None:
        return q
    last = q.meta.history[-1:]
    history = q.meta.history[:-1] if last and last[0].get("op") == "tune" else q.meta.history
    return _with_meta(q, dataclasses.replace(q.meta, tuned=None, history=history))


def modes_of(q: Posterior, samples: int = 1) -> tuple[Mode, ...]:
    """The modes in which a posterior can be predicted with; the last is the method's own.

    Args:
        q: the posterior.
        samples: S, the number of draws there are to be; 0 leaves the point alone.

    Example:
        >>> import torch
        >>> modes_of(PointMass(mean={"w": torch.ones(1)}))
        ('mean',)
    """
    if isinstance(q, PointMass) or samples == 0:
        return ("mean",)
    return ("mean", "samples", "linearised") if q.meta.linearised else ("mean", "samples")


def choose_config(q: Posterior, samples: int | None = None, default: int = SAMPLES) -> PredictionConfig:
    """The way to predict with a posterior that its draws are judged by, whether or not they help.

    Args:
        q: the posterior, tuned or not.
        samples: the number of draws that is asked for, 0 for the mean; None takes what was tuned, or else `default`.
        default: draws of a posterior that was not tuned.

    Returns:
        What was tuned, or else the method's own mode; with the number of draws where it has some.

    Raises:
        ValueError: draws are asked for, and the mean was chosen; or the number of draws is none.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> choose_config(DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)})).samples
        10
    """
    if samples is not None:
        number_of_draws(q, samples)  # refuses what is no number of draws
    tuned = q.meta.tuned
    if tuned is None:
        draws = default if samples is None else samples
        mode = modes_of(q, draws)[-1]
        return PredictionConfig(mode=mode, samples=None if mode == "mean" else draws)
    if samples is None:
        return tuned if tuned.canonical.mode == "mean" or tuned.samples else dataclasses.replace(tuned, samples=default)
    if samples == 0:
        return tuned.at("mean")
    if tuned.canonical.mode != "mean":
        return dataclasses.replace(tuned, samples=samples)
    if isinstance(q, PointMass):
        return tuned  # whose point every draw is
    raise ValueError(
        f"{samples} draws are asked for, but `varlora tune` chose this posterior's mean (temperature 0), which has "
        "none. Leave the number of draws out, or draw from the trained posterior: --untuned, in Python "
        "varlora.remove_tuning(q)."
    )


def choose_default_config(
    q: Posterior,
    samples: int | None = None,
    default: int = SAMPLES,
    *,
    mode: Mode | None = None,
    tell: bool = True,
) -> PredictionConfig:
    """The way to predict with a posterior where it is only to answer: it draws unasked where draws were shown to help.

    Args:
        q: the posterior, tuned or not.
        samples: what the caller asks for, 0 for the mean; None takes what was tuned, or else `default` draws where they
            have been shown to help, and the point where they have not.
        default: draws of a posterior that was not tuned.
        mode: the mode that the caller asks for; None goes by `samples`.
        tell: whether the log says why the point is taken unasked.

    Raises:
        ValueError: as `choose_config`; or mode and samples do not go together.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> def judged(helps):
        ...     meta = PosteriorMeta(diagnostics={"sampling": {"helps": helps, "why": "" if helps else "no gain"}})
        ...     return DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)}, meta=meta)
        >>> [choose_default_config(judged(helps)).mode for helps in (True, False)]
        ['samples', 'mean']
        >>> choose_default_config(judged(False), 4).samples
        4
    """
    if mode == "mean" and samples:
        raise ValueError("samples asks for draws, and mode is 'mean', which has no draws; leave one of them out.")
    if mode in ("samples", "linearised") and samples == 0:
        raise ValueError(f"samples is 0, which is the mean, and mode is {mode!r}; leave one of them out.")
    if mode is None and samples is None and default and (why := explain_point(q)):
        if tell:
            logger.warning("predicting with the point, in one pass: %s. samples=%d averages draws", why, default)
        return PredictionConfig(mode="mean")
    chosen = choose_config(q, 0 if mode == "mean" else samples, default)
    return chosen if mode is None else chosen.at(mode)


def prepare(q: Posterior | None, samples: int | None) -> tuple[Posterior | None, int]:
    """The posterior to draw weights from and the number of draws, where `samples` is all that a caller has said.

    Args:
        q: the posterior, tuned or not; None for a model as it stands, which has one set of weights.
        samples: as of `choose_default_config`.

    Returns:
        The posterior with its config applied, and S; 0 is the point alone.
    """
    if q is None:
        return None, 0
    config = choose_default_config(q, samples)
    return apply_config(q, config), config.draws(SAMPLES)


def explain_point(q: Posterior) -> str:
    """Why a posterior is predicted with at its point where nobody says how many draws; empty where it draws.

    A mixture always averages its members, which is what it is for; a tuned posterior does what was tuned.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> explain_point(DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)}))
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


def configs_by_mode(q: Posterior, config: PredictionConfig) -> dict[Mode, PredictionConfig]:
    """A way to predict in every mode that a posterior has; the last is the method's own. The mean has no other.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)})
        >>> list(configs_by_mode(q, PredictionConfig(samples=4)))
        ['mean', 'samples']
        >>> list(configs_by_mode(q, PredictionConfig(mode="mean")))
        ['mean']
    """
    modes = modes_of(q, 0 if config.canonical.mode == "mean" else 1)
    return {mode: config.at(mode) for mode in modes}


def nan_logits(first: str = "") -> ValueError:
    """The error of a model that gives NaN.

    Args:
        first: for which row it does first, in words.
    """
    where = f", first for {first}" if first else ""
    return ValueError(f"the model gives NaN logits{where}; its weights or the posterior's scale are broken.")


def _with_meta(q: Posterior, meta: PosteriorMeta) -> Posterior:
    return dataclasses.replace(q, meta=meta)  # type: ignore[type-var]
