"""What `varlora tune` can choose from: the grids, cut down to what a kind of posterior has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from varlora.posterior import Criterion, DropoutMasks, Mixture, Mode, PointMass, Posterior, PredictionConfig
from varlora.prediction.prediction_setup import SAMPLES, modes_of


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What `varlora tune` tries.

    Attributes:
        temperatures: values of τ; 1 (or what else is the run's own) is always among them.
        samples: numbers of draws; the run's own is always among them.
        fractions: to prune, for a report of what costs nothing.
        by: what to prune by; None: "snr", or "magnitude" where there is no variance.
        logit_temperature: whether to try a T, fitted on the rows.
        apply_pruning: whether to predict with the pruned posterior, too.
        standard_errors: by how many paired standard errors the NLL must be lower for a change; None: by the number of
            rows and of candidates (`varlora.metrics.selection`).

    Raises:
        ValueError: a value is out of its range.
    """

    temperatures: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    samples: Sequence[int] = (2, 4, 8, 16, 32)
    fractions: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.7)
    by: Criterion | None = None
    logit_temperature: bool = True
    apply_pruning: bool = False
    standard_errors: float | None = None

    def __post_init__(self) -> None:
        def check(name: str, allowed: str, fits: Callable[[float], bool]) -> None:
            if wrong := [value for value in getattr(self, name) if not fits(value)]:
                raise ValueError(f"{name} has {wrong[0]!r}; allowed: {allowed}.")

        check("temperatures", "finite numbers, at least 0 (0: the mean)", lambda v: 0 <= v < math.inf)
        check("samples", "whole numbers from 1 (the mean is temperature 0)", lambda v: v >= 1 and v == int(v))
        check("fractions", "numbers from 0 to below 1", lambda v: 0 <= v < 1)
        if self.standard_errors is not None and not 0 <= self.standard_errors < math.inf:
            raise ValueError(f"standard_errors is {self.standard_errors!r}; allowed: a finite number, at least 0.")


@dataclass(frozen=True, kw_only=True)
class Space:
    """What of it there is to choose from for a posterior, the default among it.

    Attributes:
        temperatures: values of τ.
        samples: numbers of draws.
        fractions: to prune, in rising order, above 0.
        by: what to prune by.
        fit_logits: whether a T may be fitted.
        mode: of predictions at τ > 0.
        start: τ of the default: 1, or 0 for a run that predicts at its mean.
        draws: S of the default.
        logit_temperatures: T that training left, by mode.
        standard_errors, apply_pruning: as of `Grid`.
    """

    temperatures: tuple[float, ...]
    samples: tuple[int, ...]
    fractions: tuple[float, ...]
    by: Criterion
    fit_logits: bool
    mode: Mode
    start: float
    draws: int
    logit_temperatures: Mapping[str, float]
    standard_errors: float | None = None
    apply_pruning: bool = False

    def config(self, temperature: float) -> PredictionConfig:
        """The way to predict at a value of τ, with the T that training left: where the search begins."""
        if temperature == 0 or self.mode == "mean":
            mean = self.logit_temperatures.get("mean", 1.0)
            return PredictionConfig(mode="mean", temperature=temperature, logit_temperature=mean)
        own = self.logit_temperatures.get(self.mode, 1.0)
        return PredictionConfig(mode=self.mode, samples=self.draws, temperature=temperature, logit_temperature=own)


def space_of(q: Posterior, own: int, grid: Grid) -> tuple[Space, list[str]]:
    """What there is to choose from for a kind of posterior.

    Args:
        q: the posterior as trained.
        own: the number of draws that the run predicts with; 0: at the mean.
        grid: what to try.

    Returns:
        The space, with the run's own settings in it, and notes of what this kind does not have.

    Raises:
        ValueError: there is no variance to prune by.

    Example:
        >>> import torch
        >>> q = PointMass(mean={"w": torch.ones(1)})
        >>> space, notes = space_of(q, 10, Grid(temperatures=[0.5, 2], samples=[4], fractions=[0.1]))
        >>> space.temperatures, space.by, notes
        ((1.0,), 'magnitude', ['A point mass has no variance and no draws: neither is tuned.'])
    """
    notes = []
    number = own if own > 0 else SAMPLES
    own_mode = modes_of(q, samples=1)[-1]
    points = isinstance(q, Mixture) and any(isinstance(c, PointMass) for c in q.components)
    weightless = isinstance(q, (PointMass, DropoutMasks)) or points
    scales, draws = set(grid.temperatures), set(grid.samples)
    if isinstance(q, PointMass):
        scales, draws = {1.0}, {number}
        notes.append("A point mass has no variance and no draws: neither is tuned.")
    elif points:
        scales, draws = {1.0}, {number}
        notes.append("The members of an ensemble have no variance, and each is one draw: neither is tuned.")
    elif isinstance(q, DropoutMasks):
        scales &= {0.0, 1.0}
        notes.append("Dropout masks have no variance to scale: of τ, only 0 (dropout off) is tried.")
    elif isinstance(q, Mixture) or own_mode == "linearised":
        draws = {number}
        what = "A mixture draws from each component" if isinstance(q, Mixture) else "Draws of the logits cost nothing"
        notes.append(f"{what}: the number of draws is not tuned.")
    by = grid.by
    if by is not None and by != "magnitude" and weightless:
        raise ValueError(f"by is {by!r}, but a posterior of kind {q.kind!r} has no variance; prune by 'magnitude'.")
    start = 0.0 if own == 0 and not isinstance(q, PointMass) else 1.0
    return (
        Space(
            temperatures=tuple(sorted({float(t) for t in scales} | {start})),
            samples=tuple(sorted(draws | {number})) if own_mode == "samples" else (number,),
            fractions=tuple(sorted({float(f) for f in grid.fractions if f > 0})),
            by=by if by is not None else "magnitude" if weightless else "snr",
            fit_logits=grid.logit_temperature,
            mode=own_mode,
            start=start,
            draws=number,
            logit_temperatures={mode: q.meta.logit_temperature_of(mode) for mode in modes_of(q)},
            standard_errors=grid.standard_errors,
            apply_pruning=grid.apply_pruning,
        ),
        notes,
    )
