"""How often a difference that is none is called better or worse, by the rule of the reports and by the one before it.

    python benchmarks/verdict_rates.py
    python benchmarks/verdict_rates.py --effect 4                  how often one that is there is found
    python benchmarks/verdict_rates.py --sampling --trials 60      how often sampling "helps" that is but a temperature

Two methods, K seeds, N rows that all seeds share. The losses of row n and seed k differ by

    d_nk = effect + a_n + e_nk + b_k,        sd(a) = sd(e) = 1,        sd(b) = luck · √(2/N)

so that `luck` is what a seed moves the mean difference by, in standard errors of one seed's examples: at 1 a training's
luck is as large as that of the rows it is judged on. The interval over the examples is the reports': a percentile
bootstrap of the mean over seeds. No model is trained.

    before    that interval leaves out 0, and all seeds have the sign of their mean
    now       it leaves out 0, and so does the t-interval over the seeds (`varlora.report.seeds`); of one seed, none

With --sampling: of N validation rows, logits 2·N(0, 1) of three classes with labels drawn from their softmax. The
mean's predictions are T times as sharp, and every draw's are calibrated: what the draws gain is all a temperature's.

    before    the NLLs at T = 1 differ by more than one standard error
    now       `varlora.report.sampling`: each at its own T, standard errors by the number of rows, .005 nat at least
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from varlora.metrics import METRICS
from varlora.metrics.resampling import bootstrap
from varlora.metrics.selection import paired_error
from varlora.posterior import DiagonalGaussian
from varlora.report.health import health_of
from varlora.report.sampling import ValidationLogProbs
from varlora.report.seeds import over_seeds

SEEDS = (1, 2, 3, 5, 10)
LUCK = (0.0, 0.5, 1.0, 2.0, 4.0)
TEMPERATURES = (1.2, 1.5, 3.0)
ROWS = (30, 100, 300)


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
        now += over_seeds(values).verdict(METRICS["nll"], (found.low, found.high)) in ("better", "worse")
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


def sampling_rates(temperature: float, rows: int, *, trials: int) -> tuple[float, float]:
    """The share of runs in which sampling is said to help, before and now, where draws gain what a temperature gains.

    Args:
        temperature: T, by which the mean's logits would have to be divided.
        rows: N.
        trials: runs.

    Example:
        >>> sampling_rates(3.0, 100, trials=3)
        (1.0, 0.0)
    """
    q = DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)})
    before = now = 0
    for trial in range(trials):
        generator = torch.Generator().manual_seed(trial)
        logits = 2 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
        labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        mean, draws = (temperature * logits).log_softmax(-1), logits.log_softmax(-1)
        difference, error = paired_error(*(-p.gather(-1, labels[:, None])[:, 0] for p in (draws, mean)))
        before += difference < -error
        stored = ValidationLogProbs(mean=mean[:, None], sampled=draws[:, None], labels=labels)
        now += health_of(q, samples=1, validation=stored).verdict == "helps"
    return before / trials, now / trials


def sampling_table(*, trials: int) -> str:
    """The rates as Markdown: before, then now."""
    lines = [f"| T | {' | '.join(f'{rows} rows' for rows in ROWS)} |", "| --- " * (1 + len(ROWS)) + "|"]
    for temperature in TEMPERATURES:
        found = [sampling_rates(temperature, rows, trials=trials) for rows in ROWS]
        lines.append(f"| {temperature:g} | {' | '.join(f'{100 * a:.0f} → {100 * b:.0f} %' for a, b in found)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effect", type=float, default=0.0, help="the true difference, in standard errors of one seed")
    parser.add_argument("--rows", type=int, default=300, help="test rows")
    parser.add_argument("--trials", type=int, default=2000, help="comparisons of two methods for each number")
    parser.add_argument("--sampling", action="store_true", help="verdicts on sampling in place of those on methods")
    args = parser.parse_args()
    if args.sampling:
        print(sampling_table(trials=args.trials))
        return
    print(table(effect=args.effect, rows=args.rows, trials=args.trials))


if __name__ == "__main__":
    main()
