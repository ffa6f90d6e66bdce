"""Pruning and tempering of stored posteriors: what docs/results.md says of Laplace, BLoB and IVON.

    python benchmarks/operations.py --runs runs/results/trec6 --methods laplace-kron-validation blob

The runs are those that benchmarks/results.py has made. Each posterior is pruned by signal-to-noise and tempered, and
the test rows are predicted in its own mode. Nothing is chosen: every row is shown. It prints Markdown.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
METRICS = ("accuracy", "nll", "ece_15")


def measured(run: RunFolder) -> dict[str, dict[str, float]]:
    """Test metrics by operation."""
    setting = reload_setting(run.config, run.path, run.posterior.meta)
    found = {}
    for name, operation in OPERATIONS.items():
        q = operation(run.posterior)
        prediction = predict_split(setting, q, "test", mode=modes_of(q)[-1])
        assert isinstance(prediction, Prediction)
        found[name] = evaluate(prediction.log_probs, prediction.labels)
    return found


def table(name: str, runs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """One method's operations, averaged over seeds."""
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    lines = [
        f"| {name}, {seeds} | accuracy % | NLL | ECE % | NLL's change, by seed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for operation in OPERATIONS:
        accuracy, nll, ece = (torch.tensor([run[operation][metric] for run in runs]) for metric in METRICS)
        before = torch.tensor([run["as trained"]["nll"] for run in runs])
        moved = ", ".join(f"{change:+.3f}" for change in (nll - before).tolist())
        lines.append(
            f"| {operation} | {100 * accuracy.mean():.1f} | {nll.mean():.3f} | {100 * ece.mean():.1f} | {moved} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every run of the methods, then print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of a task's runs")
    parser.add_argument(
        "--methods", nargs="+", default=["laplace-kron-validation", "blob", "ivon"], help="names of trainings"
    )
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
