"""What the temperature of few and of many validation rows gains on new rows, by the rule and without it.

    python benchmarks/temperature_rates.py

Rows of four classes with logits N(0, 2²); labels from softmax(logits / true T). The mean gain of NLL over T = 1, in
thousandths of a nat, of the likeliest T, of the one with the prior, and of the rule of `varlora.metrics.temperature`;
and the share of cases in which the rule leaves T = 1. Nothing is trained.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from varlora.metrics import fit_temperature, likeliest_temperature
from varlora.metrics.temperature import PRIOR_SD

TRUE = (1.0, 0.7, 1.5, 2.0, 3.0)
ROWS = (6, 20, 30, 50, 150, 500)


def drawn(rows: int, generator: torch.Generator) -> Tensor:
    """Logits (N, 4)."""
    return 2 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--true", type=float, nargs="+", default=TRUE, help="true temperatures")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of validation rows")
    parser.add_argument("--runs", type=int, default=1000, help="cases of each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(options.seed)
    new = drawn(20_000, generator)
    print("| true T | rows | T_ML | T_MAP | T | z > c(N) |\n|---|---|---|---|---|---|")
    for true in options.true:
        truth = (new / true).softmax(1)

        def cost(temperature: float, truth: Tensor = truth) -> float:
            return -float((truth * (new / temperature).log_softmax(1)).sum(1).mean())

        before = cost(1.0)
        for rows in options.rows:
            gains: list[tuple[float, float, float]] = []
            changed = 0
            for _ in range(options.runs):
                logits = drawn(rows, generator)
                labels = torch.multinomial((logits / true).softmax(1), 1, generator=generator)[:, 0]
                fit = fit_temperature(logits, labels, warn=False)
                shrunk = likeliest_temperature(logits, labels, prior_sd=PRIOR_SD, warn=False)
                changed += not fit.kept
                gains.append((before - cost(fit.likeliest), before - cost(shrunk), before - cost(fit.value)))
            means = " | ".join(f"{1000 * statistics.fmean(column):+.1f}" for column in zip(*gains, strict=True))
            print(f"| {true:g} | {rows} | {means} | {100 * changed / options.runs:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
