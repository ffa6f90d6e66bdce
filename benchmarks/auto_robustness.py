"""How much hangs on the settings: NLL over learning rates, ranks, batch sizes and numbers of training rows.

    python benchmarks/auto_robustness.py --data DATA --output_dir runs/auto --jobs 2

One setting at a time is moved away from those of benchmarks/auto.py (TREC-6, 300 rows, learning rate 3e-3, rank 8,
batch 16, 20 epochs); runs that the other script has done are used again. For each method it prints the NLL of test, its
mean over seeds, at each setting, and how much that is above the lowest of its row.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from auto import ENTRIES, Bench, Cell, interval, scaled, shown

from varlora.metrics import evaluate

CENTER: Mapping[str, Any] = {
    "learning_rate": 3e-3,
    "lora_r": 8,
    "per_device_train_batch_size": 16,
    "max_train_samples": 300,
}
CURVES: Mapping[str, Sequence[Any]] = {
    "learning_rate": (3e-4, 1e-3, 3e-3, 1e-2),
    "lora_r": (2, 8, 64),
    "per_device_train_batch_size": (4, 16, 64),
    "max_train_samples": (100, 300, 1000),
}
ROWS: Mapping[str, tuple[str, str, bool]] = {
    "AdamW, last step": ("adamw", "mean", False),
    "AdamW, early-stopped + T": ("adamw-early", "mean", True),
    "IVON by the published constants, 10 samples": ("cong2025", "samples", False),
    "IVON, 10 samples": ("ivon", "samples", False),
}


def bench_at(bench: Bench, name: str, value: Any) -> tuple[Bench, int]:
    """The benchmark with one setting moved, and its number of training rows."""
    if name == "max_train_samples":
        return bench, value
    if name == "learning_rate":
        return replace(bench, learning_rate=value), CENTER["max_train_samples"]
    options = {} if value == CENTER[name] else {name: value}
    if name == "lora_r":
        options |= {"lora_alpha": 2 * value} if options else {}
    return replace(bench, options=options), CENTER["max_train_samples"]


def curve(means: Sequence[tuple[float, float] | None]) -> list[str]:
    """Each mean with its interval and, in percent, how far it is above the lowest; – where nothing is known."""
    best = min((found[0] for found in means if found is not None), default=math.nan)
    return ["–" if found is None else f"{shown(*found)} (+{100 * (found[0] / best - 1):.0f} %)" for found in means]


def main() -> None:
    """Train what is missing, then print a table for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the tasks' folders; the hub otherwise")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/auto"))
    parser.add_argument("--task", default="trec6", choices=("trec6", "sst2"))
    parser.add_argument("--settings", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on one thread each")
    arguments = parser.parse_args()
    bench = Bench(output_dir=arguments.output_dir, data=arguments.data)
    for name in arguments.settings:
        print(f"\n| test NLL by {name} | {' | '.join(map(str, CURVES[name]))} |")
        print("| --- " * (len(CURVES[name]) + 1) + "|")
        moved = {value: bench_at(bench, name, value) for value in CURVES[name]}
        for there, size in moved.values():
            entries = [entry for entry in ENTRIES if any(entry == row[0] for row in ROWS.values())]
            there.train([Cell(arguments.task, size, e, s) for e in entries for s in arguments.seeds], arguments.jobs)
        for label, (entry, mode, temperature) in ROWS.items():
            means: list[tuple[float, float] | None] = []
            for there, size in moved.values():
                found = [there.done(Cell(arguments.task, size, entry, seed)) for seed in arguments.seeds]
                values = [
                    evaluate(prediction.log_probs, prediction.labels)["nll"]
                    for folder in found
                    if folder is not None
                    for prediction in [scaled(folder, "test", mode, temperature=temperature)]
                ]
                means.append(interval(values) if values else None)
            print(f"| {label} | {' | '.join(curve(means))} |")


if __name__ == "__main__":
    main()
