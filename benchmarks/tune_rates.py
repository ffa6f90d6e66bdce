"""How often `varlora tune` changes a run that needs no change, and one that does, by the number of validation rows.

    python benchmarks/tune_rates.py --runs 400

Pure tensors go through `varlora.runs.tuning.choose`, as `varlora tune` calls it: four classes with logits
N(0, 2²) + √τ · noise · N(0, 1) for each draw, ten draws, the usual grids of τ and S and a T. Labels are drawn from
the average of many draws at the world's own τ, its logits divided by the world's own T. So in the world "nothing
helps" the way that the run predicts is the true one, and every change is a false one. For each number of rows:

    changed    the share of runs in which `tune` changed something
    τ, T, S    the shares in which it changed each
    gain       mean NLL before minus after on 4,000 fresh rows, in thousandths of a nat, ± its standard error; below
               0 the choice lost

Nothing is trained, and no model is read.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varlora.posterior import PredictionConfig
from varlora.runs.space import Grid, Space
from varlora.runs.tuning import choose, losses

GRID = Grid()
CLASSES, SPREAD, OWN_DRAWS, MANY = 4, 2.0, 10, 64
GRID = Grid()
FRESH = 4000
ROWS = (20, 30, 50, 100, 150, 300)


@dataclass(frozen=True, kw_only=True)
class World:
    """What the labels are drawn from.

    Attributes:
        name: in words.
        noise: sd of the logits over draws at τ = 1.
        temperature: τ of the truth; 0: the mean.
        divisor: T of the truth.
    """

    name: str
    noise: float = 0.5
    temperature: float = 1.0
    divisor: float = 1.0


WORLDS = (
    World(name="nothing helps"),
    World(name="over-confident, T = 1.5", divisor=1.5),
    World(name="over-confident, T = 2", divisor=2.0),
    World(name="under-confident, T = 0.7", divisor=0.7),
    World(name="the mean is right, much noise", noise=1.5, temperature=0.0),
)


class Rows:
    """Rows of a world with their draws: what `choose` asks for."""

    def __init__(self, world: World, rows: int, generator: torch.Generator) -> None:
        self.world = world
        self.mean = SPREAD * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
        self.noise = torch.randn(rows, max(GRID.samples), CLASSES, generator=generator, dtype=torch.float64)
        others = torch.randn(rows, MANY, CLASSES, generator=generator, dtype=torch.float64)
        truth = self._log_probs(world.temperature, others).logsumexp(1) / world.divisor
        self.labels = torch.multinomial(truth.softmax(1), 1, generator=generator)[:, 0]

    def _log_probs(self, temperature: float, noise: Tensor) -> Tensor:
        return (self.mean[:, None] + math.sqrt(temperature) * self.world.noise * noise).log_softmax(2)

    def __call__(self, config: PredictionConfig) -> Tensor:
        """Log-probabilities (N, S, C) at τ; nothing is pruned."""
        return self._log_probs(config.temperature, self.noise[:, : config.draws(OWN_DRAWS) or 1])

    def nll(self, config: PredictionConfig) -> float:
        """The mean NLL of a way to predict."""
        return float(losses(self(config), self.labels, config.logit_temperature or 1.0).mean())


def space() -> Space:
    """What `varlora tune` chooses from, without pruning."""
    return Space(
        temperatures=tuple(sorted(GRID.temperatures)),
        samples=tuple(sorted({*GRID.samples, OWN_DRAWS})),
        fractions=(),
        by="snr",
        fit_logits=True,
        mode="samples",
        start=1.0,
        draws=OWN_DRAWS,
        logit_temperatures={},
    )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What `choose` did in the runs of one world with one number of rows: shares, and nats."""

    changed: float
    of_temperature: float
    of_divisor: float
    of_draws: float
    gain: float
    error: float


def rates(world: World, rows: int, runs: int, *, seed: int = 0) -> Rates:
    """Chooses in as many runs as are asked for, each on rows of its own.

    Args:
        world: what the labels are drawn from.
        rows: validation rows of a run.
        runs: how many.
        seed: decides all of them.
    """
    fresh = Rows(world, FRESH, torch.Generator().manual_seed(seed))
    default = PredictionConfig(samples=OWN_DRAWS)
    before, generator = fresh.nll(default), torch.Generator().manual_seed(seed + 1)
    changes, gains = [], []
    for _ in range(runs):
        given = Rows(world, rows, generator)
        choice = choose(given, given.labels, space())
        how = choice.chosen.config
        moved = how.temperature != 1
        changes.append((not choice.kept, moved, how.logit_temperature != 1, not moved and how.samples != OWN_DRAWS))
        gains.append(0.0 if choice.kept else before - fresh.nll(how))
    changed, temperature, divisor, draws = (statistics.fmean(column) for column in zip(*changes, strict=True))
    return Rates(
        changed=changed,
        of_temperature=temperature,
        of_divisor=divisor,
        of_draws=draws,
        gain=statistics.fmean(gains),
        error=statistics.stdev(gains) / math.sqrt(runs),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of validation rows")
    parser.add_argument("--runs", type=int, default=400, help="runs of each world with each number of rows")
    parser.add_argument("--worlds", type=int, nargs="+", default=range(len(WORLDS)), help="which, from 0")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print("| world | rows | changed | τ | T | S | gain, 10⁻³ nat |")
    print("|---|---|---|---|---|---|---|")
    for world in (WORLDS[i] for i in options.worlds):
        for rows in options.rows:
            found = rates(world, rows, options.runs, seed=options.seed)
            shares = (found.changed, found.of_temperature, found.of_divisor, found.of_draws)
            cells = " | ".join(f"{100 * share:.0f} %" for share in shares)
            gain = f"{1000 * found.gain:+.1f} ± {1000 * found.error:.1f}"
            print(f"| {world.name} | {rows} | {cells} | {gain} |", flush=True)


if __name__ == "__main__":
    main()
