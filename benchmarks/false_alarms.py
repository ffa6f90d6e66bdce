"""How often held-out rows steer λ, or leave a temperature, where nothing is wrong; and how often where something is.

Rows' logits at the mean are Gaussian, draws of the weights add Gaussian noise to them in opposite pairs, and labels are
drawn from the prediction itself: from the average over many draws, sharpened or flattened by the one constant for which
averages of ten draws are exactly calibrated. A world of T = 1.5 has all logits times 1.5. Nothing is trained: the
logits stay, and λ does not act on them, so that nothing calls back a λ that has left. The rows are asked when and as
often as in a training (`HeldOut.plan`), and what they say is added up and acted on as there.

    python benchmarks/false_alarms.py                   # a table in Markdown
    python benchmarks/false_alarms.py --rows 5 --runs 1000
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varlora.ivon.calibration_slope import PREDICTED_DRAWS, moments, told_by
from varlora.ivon.ess_control import steered_ess
from varlora.ivon.measuring import BEGUN_AFTER, PAIRS, Plan, measuring_plan
from varlora.ivon.withholding import RETURNED_AFTER, withheld_rows
from varlora.posterior.held_out_record import HeldOutRecord

MANY = 32
"""Pairs of draws whose average is the truth."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Predictions and labels.

    Attributes:
        rows: held-out rows.
        noise: sd of the logits' noise.
        temperature: T that averages of ten draws lack; 1: calibrated.
        spread: sd of the logits at the mean, before they are multiplied by T.
        classes: C.
    """

    rows: int
    noise: float
    temperature: float = 1.0
    spread: float = 2.0
    classes: int = 4


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of the runs.

    Attributes:
        ever: λ was outside [1/2, 2] λ_0 at some time.
        finally_: it was at the end.
        told: a T other than 1 was left for averages of draws.
        told_of_mean: the same for predictions at the mean.
        temperature: the geometric mean of the T for averages of draws.
    """

    ever: float
    finally_: float
    told: float
    told_of_mean: float
    temperature: float


def noisy(logits: Tensor, sd: float, pairs: int, generator: torch.Generator) -> Tensor:
    """(pairs, 2, ..., C): logits (..., C) plus and minus noise."""
    noise = sd * torch.randn(pairs, *logits.shape, generator=generator, dtype=logits.dtype)
    return torch.stack([logits + noise, logits - noise], dim=1)


def averaged(draws: Tensor) -> Tensor:
    """Log-probabilities (..., C) of the average over draws (pairs, 2, ..., C)."""
    return draws.log_softmax(-1).flatten(0, 1).logsumexp(0) - math.log(2 * len(draws))


def calibrating_power(world: World, rows: int = 4000) -> float:
    """Power of the average over many draws whose labels leave averages of ten draws calibrated."""
    generator = torch.Generator().manual_seed(1)
    logits = world.spread * torch.randn(rows, world.classes, generator=generator)
    truth = averaged(noisy(logits, world.noise, MANY, generator))
    draws = noisy(logits, world.noise, PREDICTED_DRAWS // 2, generator).flatten(0, 1)
    weights = draws.softmax(-1) / draws.softmax(-1).sum(0)
    slopes = (weights * ((draws.softmax(-1) * draws).sum(-1, keepdim=True) - draws)).sum(0)  # by label
    low, high = 0.5, 2.0
    for _ in range(40):
        power = math.sqrt(low * high)
        mean = ((power * truth).softmax(-1) * slopes).sum(-1).mean()
        low, high = (power, high) if mean > 0 else (low, power)  # sharper labels make predictions less over-confident
    return math.sqrt(low * high)


def plan_of(rows: int, *, withheld: bool, rows_per_step: int, steps: int) -> Plan:
    """When a training asks so many rows."""
    end = int(RETURNED_AFTER * steps) if withheld else steps
    begin = int(BEGUN_AFTER * steps)
    return measuring_plan(rows, work=3 * rows_per_step, steps=steps, begin=begin, end=end)


def rates(world: World, plan: Plan, *, steps: int, runs: int, seed: int = 0) -> Rates:
    """What λ and T do in so many trainings.

    Args:
        world: of each of them, with its own labels.
        plan: when rows are asked, and how many.
        steps: of a training: after the last one λ stays.
        runs: how many trainings.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    n, sd, t = world.rows, world.noise, world.temperature
    logits = world.spread * torch.randn(runs, n, world.classes, generator=generator)
    truth = (calibrating_power(world) * averaged(noisy(logits, sd, MANY, generator))).softmax(-1)
    labels = torch.multinomial(truth.flatten(0, 1), 1, generator=generator).view(runs, n)
    records, ess = [HeldOutRecord()] * runs, [1.0] * runs
    ever = [False] * runs
    for number, step in enumerate(plan.steps):
        asked = (torch.arange(plan.rows) + number * plan.rows) % n
        answers = labels[:, asked].flatten()
        at_mean = t * logits[:, asked].flatten(0, 1)
        draws = noisy(at_mean, t * sd, PAIRS, generator)
        told = told_by(
            moments(at_mean, answers),
            torch.stack([moments(draw, answers) for draw in draws.flatten(0, 1)]).unflatten(0, (PAIRS, 2)),
        )
        by_run = {name: value.view(runs, -1) for name, value in told.items()}
        for run in range(runs):
            records[run] = records[run].with_rows(**{name: value[run] for name, value in by_run.items()})
            if step < steps:
                ess[run] = steered_ess(ess[run], 1.0, records[run].beyond_chance(n))
                ever[run] |= not 0.5 <= ess[run] <= 2
    left = [record.remaining_temperature(n) for record in records]
    return Rates(
        ever=sum(ever) / runs,
        finally_=sum(not 0.5 <= x <= 2 for x in ess) / runs,
        told=sum(x != 1 for x in left) / runs,
        told_of_mean=sum(record.remaining_temperature(n, of="mean") != 1 for record in records) / runs,
        temperature=math.exp(sum(map(math.log, left)) / runs),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5, 10, 30, 64, 150, 256])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.5, 1.2], help="sd of the draws' logits")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    parser.add_argument("--fewest", type=int, default=150, help="rows of the worlds that are not calibrated")
    parser.add_argument("--spread", type=float, default=2.0, help="sd of the logits at the mean")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows_per_step", type=int, default=16)
    parser.add_argument("--runs", type=int, default=300)
    given = parser.parse_args(arguments)
    print("| rows | noise | T | asked | λ ever outside [½, 2] λ_0 | at the end | T ≠ 1 told | of the mean | T |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for rows in given.rows:
        for withheld in (False, True):
            if withheld and rows != len(withheld_rows(10 * rows, seed=0)):
                continue  # so few are never withheld
            for noise in given.noise:
                for t in given.temperature:
                    if t != 1 and rows < given.fewest:
                        continue
                    plan = plan_of(rows, withheld=withheld, rows_per_step=given.rows_per_step, steps=given.steps)
                    world = World(rows=rows, noise=noise, temperature=t, spread=given.spread)
                    found = rates(world, plan, steps=given.steps, runs=given.runs)
                    name = f"{rows}{' withheld' if withheld else ''}"
                    shares = (found.ever, found.finally_, found.told, found.told_of_mean)
                    percent = " | ".join(f"{100 * share:.0f} %" for share in shares)
                    print(
                        f"| {name} | {noise} | {t} | {len(plan.steps)} × {plan.rows} | {percent} | "
                        f"{found.temperature:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
