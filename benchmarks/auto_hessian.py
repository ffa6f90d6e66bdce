"""Whether a learned Hessian helps: h kept at h0 against h learned by Price's estimate, judged by what h is for.

    python benchmarks/auto_hessian.py --data DATA --output_dir runs/auto --jobs 2

Each posterior's test NLL, how far h has moved, and the accuracy at the mean when the weights with the lowest
signal-to-noise, or with the smallest magnitude, is set to zero; on CLINC150 the AUROC of mutual information for rows
out of scope. Runs that benchmarks/auto.py has done are used again. λ is steered by validation rows throughout.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from auto import Bench, Cell, interval

from varlora.metrics import auroc, evaluate, mutual_information
from varlora.ops import prune
from varlora.prediction import Prediction
from varlora.runs import RunFolder, predict_split, read_run, reload_setting

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "h = h0": {},
    "h learned, β2 = .9999": {"beta2": 0.9999},
    "h learned, β2 = .999": {"beta2": 0.999},
}
FRACTIONS = (0.5, 0.7, 0.9)
SIZES = {"trec6": 300, "clinc150": 1000}


def measured(run: RunFolder) -> dict[str, float]:
    """One run's figures."""
    setting = reload_setting(run.config, run.path, run.posterior.meta)
    test = run.prediction("test", "samples")
    moved = (run.posterior.meta.diagnostics or {})["hessian_moved"]["overall"]
    found = {"NLL": evaluate(test.log_probs, test.labels)["nll"], "h moved": moved}
    if "ood" in run.metrics:
        both = torch.cat([test.log_probs, run.prediction("ood", "samples").log_probs])
        found["AUROC of MI"] = float(auroc(mutual_information(both), torch.arange(len(both)) >= len(test.labels)))
    for fraction in FRACTIONS:
        for by in ("snr", "magnitude"):
            pruned = predict_split(setting, prune(run.posterior, fraction, by=by), "test", mode="mean")
            assert isinstance(pruned, Prediction)
            found[f"{fraction:.0%} by {by}"] = evaluate(pruned.log_probs, pruned.labels)["accuracy"]
    return found


def show(task: str, found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """A task's table; the cells are means over seeds with half a 95 % interval."""
    columns = list(next(iter(found.values()))[0])
    print(f"\n| {task}, {SIZES[task]} rows | {' | '.join(columns)} |\n{'| --- ' * (len(columns) + 1)}|")
    for variant, runs in found.items():
        cells = ["{:.3f} ± {:.3f}".format(*interval([run[column] for run in runs])) for column in columns]
        print(f"| {variant} | {' | '.join(cells)} |")


def main() -> None:
    """Train what is missing, then print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the tasks' folders; the hub otherwise")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/auto"))
    parser.add_argument("--tasks", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on one thread each")
    arguments = parser.parse_args()
    bench = Bench(output_dir=arguments.output_dir, data=arguments.data)
    for task in arguments.tasks:
        cells = [Cell(task, SIZES[task], "ivon-validation", seed) for seed in arguments.seeds]
        found = {}
        for variant, options in VARIANTS.items():
            there = replace(bench, options=options)
            there.train(cells, arguments.jobs)
            found[variant] = [measured(read_run(there.config(cell).output_dir)) for cell in cells if there.done(cell)]
        show(task, found)


if __name__ == "__main__":
    main()
