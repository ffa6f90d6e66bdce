"""Pruning and tempering of stored posteriors: what docs/results.md says of Laplace, BLoB and IVON.

    python benchmarks/operations.py --runs runs/results/trec6 --methods ivon laplace-kron blob

The runs are those that benchmarks/results.py has made. Each posterior is pruned by signal-to-noise and tempered, and
predicted in its own mode; the fraction and the temperature in bold are the best by the validation rows' NLL, averaged
over seeds, and the table shows test rows. It prints Markdown.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from varlora.metrics import evaluate
from varlora.ops import prune, temper
from varlora.posterior import Posterior
from varlora.prediction import Prediction, modes_of
from varlora.runs import RunFolder, predict_split, read_run, reload_setting

OPERATIONS: Mapping[str, Callable[[Posterior], Posterior]] = {
    "as trained": lambda q: q,
    "pruned by 10 %": lambda q: prune(q, 0.1),
    "pruned by 30 %": lambda q: prune(q, 0.3),
    "pruned by 50 %": lambda q: prune(q, 0.5),
    "tempered, τ = 1/4": lambda q: temper(q, 0.25),
    "tempered, τ = 4": lambda q: temper(q, 4.0),
}
SPLITS = ("validation", "test")
Measured = Mapping[str, Mapping[str, float]]


def measured(run: RunFolder) -> dict[str, Measured]:
    """Accuracy, NLL and ECE by operation and split."""
    setting = reload_setting(run.config, run.path, run.posterior.meta)
    found: dict[str, Measured] = {}
    for name, operation in OPERATIONS.items():
        q = operation(run.posterior)
        by_split = {}
        for split in SPLITS:
            prediction = predict_split(setting, q, split, mode=modes_of(q)[-1])
            assert isinstance(prediction, Prediction)
            by_split[split] = evaluate(prediction.log_probs, prediction.labels)
        found[name] = by_split
    return found


def table(name: str, runs: list[dict[str, Measured]]) -> str:
    """One method's operations, averaged over seeds."""
    values: dict[tuple[str, str, str], torch.Tensor] = {}
    for operation in OPERATIONS:
        for split in SPLITS:
            for metric in ("accuracy", "nll", "ece_15"):
                values[operation, split, metric] = torch.tensor([run[operation][split][metric] for run in runs])
    best = min(OPERATIONS, key=lambda operation: float(values[operation, "validation", "nll"].mean()))
    lines = [
        f"| {name} | accuracy % | NLL | ECE % | NLL against as trained, by seed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for operation in OPERATIONS:
        accuracy, nll, ece = (values[operation, "test", metric] for metric in ("accuracy", "nll", "ece_15"))
        moved = ", ".join(f"{d:+.3f}" for d in (nll - values["as trained", "test", "nll"]).tolist())
        label = f"**{operation}**" if operation == best else operation
        lines.append(f"| {label} | {100 * accuracy.mean():.1f} | {nll.mean():.3f} | {100 * ece.mean():.1f} | {moved} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every run of the methods, then print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of a task's runs")
    parser.add_argument("--methods", nargs="+", default=["ivon", "laplace-kron", "blob"], help="names of trainings")
    arguments = parser.parse_args()
    for name in arguments.methods:
        by_rate = defaultdict(list)
        for folder in sorted(arguments.runs.glob(f"{name}-lr-*-seed-*")):
            if (folder / "metrics.json").is_file():
                by_rate[folder.name.split("-seed-")[0]].append(folder)
        folders = max(by_rate.values(), key=len)  # the chosen learning rate has every seed
        print(f"{table(name, [measured(read_run(folder)) for folder in folders])}\n", flush=True)


if __name__ == "__main__":
    main()
