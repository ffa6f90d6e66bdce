"""How often a difference that is none is called better or worse, by the rule of the reports and by the one before it.

    python benchmarks/verdict_rates.py
    python benchmarks/verdict_rates.py --effect 4                  how often one that is there is found

Two methods, K seeds, N rows that all seeds share. The losses of row n and seed k differ by

    d_nk = effect + a_n + e_nk + b_k,        sd(a) = sd(e) = 1,        sd(b) = luck · √(2/N)

so that `luck` is what a seed moves the mean difference by, in standard errors of one seed's examples: at 1 a training's
luck is as large as that of the rows it is judged on. The interval over the examples is the reports': a percentile
bootstrap of the mean over seeds. No model is trained.

    before    that interval leaves out 0, and all seeds have the sign of their mean
    now       it leaves out 0, and so does the t-interval over the seeds (`varlora.report.seeds`); of one seed, none
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from varlora.metrics.bootstrap import bootstrap
from varlora.report.seeds import over_seeds
from varlora.report.vocabulary import measure

SEEDS = (1, 2, 3, 5, 10)
LUCK = (0.0, 0.5, 1.0, 2.0, 4.0)


def rates(seeds: int, luck: float, *, effect: float = 0.0, rows: int = 300, trials: int = 2000) -> tuple[float, float]:
    """The share of comparisons that are called better or worse, before and now.

    Args:
        seeds: K.
        luck: sd of a seed's own effect, in standard errors of one seed's examples.
        effect: the true difference, in the same unit.
        rows: N.
        trials: comparisons.

    Example:
        >>> rates(1, 0.0, trials=50)[1]
        0.0
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    unit = math.sqrt(2 / rows)
    offset = unit * (effect + luck * normal(trials, seeds))  # of each seed
    common = normal(trials, rows)
    own = torch.stack([normal(trials, rows) for _ in range(seeds)], dim=1)
    by_seed = common.mean(1)[:, None] + own.mean(2) + offset
    by_row = common + own.mean(1) + offset.mean(1)[:, None]
    intervals = bootstrap(lambda rows_R: _means(by_row, rows_R), rows)
    before = now = 0
    for trial, values in enumerate(by_seed.tolist()):
        found = intervals[str(trial)]
        clear = found.low > 0 or found.high < 0
        before += clear and len({value > 0 for value in values}) == 1
        now += over_seeds(values).verdict(measure("nll"), (found.low, found.high)) in ("better", "worse")
    return before / trials, now / trials


def _means(by_row: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """The mean of every trial's rows at indices (..., N), by the trial's number."""
    counts = torch.zeros(rows.shape, dtype=torch.float64).scatter_add(-1, rows, torch.ones(rows.shape).double())
    means = counts @ by_row.T / rows.shape[-1]
    return {str(trial): means[..., trial] for trial in range(len(by_row))}


def table(*, effect: float, rows: int, trials: int) -> str:
    """The rates as Markdown: before, then now."""
    lines = [f"| seeds | {' | '.join(f'luck {luck:g}' for luck in LUCK)} |", "| --- " * (1 + len(LUCK)) + "|"]
    for seeds in SEEDS:
        found = [rates(seeds, luck, effect=effect, rows=rows, trials=trials) for luck in LUCK]
        lines.append(f"| {seeds} | {' | '.join(f'{100 * a:.1f} → {100 * b:.1f} %' for a, b in found)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effect", type=float, default=0.0, help="the true difference, in standard errors of one seed")
    parser.add_argument("--rows", type=int, default=300, help="test rows")
    parser.add_argument("--trials", type=int, default=2000, help="comparisons of two methods for each number")
    args = parser.parse_args()
    print(table(effect=args.effect, rows=args.rows, trials=args.trials))


if __name__ == "__main__":
    main()
