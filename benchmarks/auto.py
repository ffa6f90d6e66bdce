"""The tables of docs/auto.md: IVON's defaults against AdamW with everything that validation rows can buy it.

    python benchmarks/auto.py --data DATA --output_dir runs/auto --jobs 2

DATA holds the folders sst2, trec6 and clinc150_small of JSONL files that the named tasks read; without --data the hub
is asked. The generated task needs nothing. Each cell is a run folder named by what was run and by the hash of all its
settings; finished ones are kept, so the script can be interrupted and goes on, and settings never mix. It prints the
tables in Markdown, with what is missing.

MiniLM's frozen layers are cached, and so without dropout, for all alike. Intervals are over seeds, 95 % of Student's t.

A seed decides which rows are trained on, initialisation, data order and noise. Nothing is chosen by task: AdamW's
learning rate is 3e-3 for MiniLM and 1e-3 for the tiny Llama, IVON has the same. Validation rows (300, or 150 of the
generated task) serve AdamW's early stopping, the temperatures of the rows that say "+ T", and "IVON, steered by
validation rows"; "IVON" itself does not use them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from results import FOLDERS, packaged_model
from scipy import stats

from varlora.demo.data import model_folder, write_task
from varlora.held_out import number_withheld
from varlora.methods import fit_temperature
from varlora.metrics import auroc, evaluate, mutual_information, predictive_entropy
from varlora.prediction import Prediction
from varlora.runs import RunConfig, RunFolder, read_run, run
from varlora.runs.config import read_yaml

RECIPES = Path(__file__).parent.parent / "recipes" / "auto"
GENERATED_VALIDATION, GENERATED_TEST = 150, 400
REFERENCE = "AdamW, early-stopped + T"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One training, and the rows that it gives: label → (mode of prediction, whether a temperature is fitted)."""

    rows: Mapping[str, tuple[str, bool]]
    options: Mapping[str, Any] = field(default_factory=dict)


def _variational(label: str, **options: Any) -> Entry:
    rows = {f"{label}, mean": ("mean", False), f"{label}, 10 samples": ("samples", False)}
    return Entry(rows=rows | {f"{label}, 10 samples + T": ("samples", True)}, options={"method": "ivon"} | options)


ENTRIES: Mapping[str, Entry] = {
    "adamw": Entry(
        rows={"AdamW, last step": ("mean", False), "AdamW, last step + T": ("mean", True)}, options={"method": "adamw"}
    ),
    "adamw-early": Entry(
        rows={"AdamW, early-stopped": ("mean", False), REFERENCE: ("mean", True)},
        options={"method": "adamw", "early_stopping": True},
    ),
    "smoothing": Entry(
        rows={"AdamW, label smoothing .1": ("mean", False)}, options={"method": "adamw", "label_smoothing": 0.1}
    ),
    "ema": Entry(rows={"AdamW, averaged weights": ("mean", False)}, options={"method": "ema"}),
    "mc_dropout": Entry(
        rows={"MC dropout, 10 passes": ("samples", False), "MC dropout, 10 passes + T": ("samples", True)},
        options={"method": "mc_dropout", "lora_dropout": 0.1},
    ),
    "ensemble": Entry(
        rows={"Ensemble of 5": ("samples", False), "Ensemble of 5 + T": ("samples", True)},
        options={"method": "ensemble", "members": 5},
    ),
    "cong2025": _variational("IVON by the published constants", recipe="cong2025"),
    "constant": _variational("IVON with λ = 100 N", held_out="none"),
    "ivon": _variational("IVON", held_out="train"),
    "ivon-validation": _variational("IVON, steered by validation rows", held_out="validation"),
}
CLIP_RADIUS = 1e-3
"""Of the published recipe: its learning rate times this is its largest step, set to AdamW's learning rate here."""


@dataclass(frozen=True, order=True)
class Cell:
    """One run."""

    task: str
    size: int
    entry: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where runs are kept, what they read, and what all of them share beyond the recipes."""

    output_dir: Path
    data: Path | None
    learning_rate: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, cell: Cell) -> RunConfig:
        """A cell's settings."""
        settings = read_yaml(RECIPES / f"{cell.task}.yaml", RunConfig.__dataclass_fields__)
        rate = self.learning_rate or (1e-3 if cell.task == "generated" else 3e-3)
        settings |= {"seed": cell.seed, "data_seed": cell.seed, "learning_rate": rate, "save_steps": 10_000}
        settings |= {"num_train_epochs": epochs_of(cell.task, cell.size)} | dict(ENTRIES[cell.entry].options)
        if settings.get("held_out") == "train" and number_withheld(cell.size) == 0:
            settings["held_out"] = "none"  # what the default does with so few training rows and no validation rows
        if settings.get("recipe", "auto") != "auto":
            settings["learning_rate"] = rate / CLIP_RADIUS
        if cell.task == "generated":
            folder = self.output_dir / "generated" / f"{cell.size}-{cell.seed}"
            files = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
            settings |= {f"{split}_file": str(file) for split, file in files.items()}
            settings["model_name_or_path"] = str(model_folder())
        else:
            settings |= {"max_train_samples": cell.size, "model_name_or_path": str(packaged_model())}
            settings |= {"task_dir": str(self.data / FOLDERS[cell.task])} if self.data is not None else {}
        settings |= self.options
        unnamed = RunConfig(**settings, output_dir="-")
        name = f"{cell.entry}-seed-{cell.seed}-{unnamed.fingerprint}"
        return replace(unnamed, output_dir=str(self.output_dir / f"{cell.task}-{cell.size}" / name))

    def prepare(self, cell: Cell) -> None:
        """Writes the generated task's rows: other questions for each seed."""
        folder = self.output_dir / "generated" / f"{cell.size}-{cell.seed}"
        if cell.task == "generated" and not folder.is_dir():
            sizes = {"train": cell.size, "validation": GENERATED_VALIDATION, "test": GENERATED_TEST}
            write_task(folder, 1000 + cell.seed, **sizes)

    def done(self, cell: Cell) -> RunFolder | None:
        """The finished run, if it is there."""
        folder = Path(self.config(cell).output_dir)
        return read_run(folder) if (folder / "metrics.json").is_file() else None

    def train(self, cells: Sequence[Cell], jobs: int) -> None:
        """The runs that have not been done; a failed one is reported and does not stop the others."""
        missing = [cell for cell in cells if self.done(cell) is None]
        for cell in missing:
            self.prepare(cell)
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(_run, self.config(cell)): cell for cell in missing}
            for count, future in enumerate(as_completed(futures), start=1):
                error = future.exception()
                state = f"failed: {error}" if error is not None else f"{future.result():.0f} s"
                print(f"{count}/{len(missing)} {futures[future]}: {state}", file=sys.stderr, flush=True)


def _run(config: RunConfig) -> float:
    torch.set_num_threads(1)
    return run(config, overwrite=True, progress=False).seconds["train"]


def epochs_of(task: str, size: int) -> int:
    """Passes over the training rows: 20, or 10 where that makes more than 1000 steps of 16."""
    return 20 if size <= 600 or task == "clinc150" else 10


def scaled(found: RunFolder, split: str, mode: str, *, temperature: bool) -> Prediction:
    """A stored prediction, divided by the temperature that the run's validation rows ask for if that is wanted."""
    prediction = found.prediction(split, mode)
    if not temperature:
        return prediction
    validation = found.prediction("validation", mode)
    t = fit_temperature(validation.log_probs, validation.labels)
    return replace(prediction, log_probs=(prediction.log_probs / t).log_softmax(-1))


METRICS = ("accuracy", "nll", "ece_15", "brier")
COMPARED: tuple[str, ...] = ("nll", "ece_15", "accuracy", "auroc_entropy", "auroc_mi")
Found = Mapping[tuple[str, int], RunFolder]
"""By entry and seed."""


Measured = Mapping[str, Mapping[int, Mapping[str, float]]]
"""By label, seed and metric."""


def measured(found: Found, split: str) -> Measured:
    """By label and seed, the metrics of a split; of rows out of scope, how well they are told from test."""
    table: dict[str, dict[int, dict[str, float]]] = {}
    for (name, seed), folder in found.items():
        for label, (mode, temperature) in ENTRIES[name].rows.items():
            prediction = scaled(folder, split, mode, temperature=temperature)
            if int(prediction.labels.max()) >= 0:
                values = evaluate(prediction.log_probs, prediction.labels)
                row = {metric: values[metric] for metric in METRICS}
            else:
                inside = scaled(folder, "test", mode, temperature=temperature)
                both = torch.cat([inside.log_probs, prediction.log_probs])
                outside = torch.arange(len(both)) >= len(inside.log_probs)
                row = {"auroc_entropy": float(auroc(predictive_entropy(both), outside))}
                if both.shape[1] > 1:
                    row["auroc_mi"] = float(auroc(mutual_information(both), outside))
            table.setdefault(label, {})[seed] = row
    return table


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t-interval."""
    found = torch.tensor(values, dtype=torch.float64)
    if len(found) < 2:
        return float(found.mean()), math.nan
    return float(found.mean()), float(stats.t.ppf(0.975, len(found) - 1) * found.std() / math.sqrt(len(found)))


def difference(
    rows: Mapping[int, Mapping[str, float]], reference: Mapping[int, Mapping[str, float]], metric: str
) -> tuple[float, float] | None:
    """Mean difference to the reference, paired by seed, and half its interval; mutual information against entropy."""
    against = "auroc_entropy" if metric == "auroc_mi" else metric
    seeds = [seed for seed, row in rows.items() if seed in reference and metric in row]
    return interval([rows[seed][metric] - reference[seed][against] for seed in seeds]) if seeds else None


def shown(mean: float, half: float, sign: str = "") -> str:
    """A mean with half its interval, if it has one."""
    return f"{mean:{sign}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def verdict(metric: str, mean: float, half: float) -> str:
    """Of a difference; none from one seed."""
    if math.isnan(half):
        return ""
    if abs(mean) <= half:
        return "tie"
    return "better" if (mean > 0) == (metric == "accuracy" or metric.startswith("auroc")) else "worse"


Verdicts = Mapping[tuple[str, str], str]
"""By label and metric."""


def table_of(table: Measured, order: Sequence[str]) -> tuple[list[str], Verdicts]:
    """One split's table: mean ± half a 95 % interval over seeds, and paired differences to the reference."""
    columns = list(dict.fromkeys(column for rows in table.values() for row in rows.values() for column in row))
    compared = [column for column in COMPARED if column in columns]
    heads = [*columns, *(f"{column} − reference" for column in compared)]
    lines = [f"| | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    verdicts: dict[tuple[str, str], str] = {}
    for label in order:
        rows, cells = table[label], []
        for column in columns:
            values = [row[column] for row in rows.values() if column in row]
            cells.append(shown(*interval(values)) if values else "–")
        for column in compared:
            found = difference(rows, table.get(REFERENCE, {}), column)
            if found is None or label == REFERENCE:
                cells.append("–")
                continue
            verdicts[label, column] = verdict(column, *found)
            cells.append(f"{shown(*found, sign='+')} {verdicts[label, column]}".rstrip())
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines, verdicts


def show(bench: Bench, cells: Sequence[Cell]) -> None:
    """Every table, then how often each row was better, tied or worse than the reference, where seeds are several."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for (task, size), group in itertools.groupby(sorted(cells), key=lambda cell: (cell.task, cell.size)):
        wanted = list(group)
        found = {(cell.entry, cell.seed): folder for cell in wanted if (folder := bench.done(cell)) is not None}
        missing = len(wanted) - len(found)
        if not found:
            continue
        order = [label for name in ENTRIES for label in ENTRIES[name].rows if any(name == n for n, _ in found)]
        for split in next(iter(found.values())).metrics:
            if split in ("validation", "test_in_scope"):
                continue
            seeds = {seed for _, seed in found}
            left = f"; {missing} runs missing" if missing else ""
            print(f"\n### {task}, {size} training rows, {split} ({len(seeds)} seeds{left})\n")
            lines, verdicts = table_of(measured(found, split), order)
            print("\n".join(lines))
            for (label, metric), said in verdicts.items():
                if said:
                    counts.setdefault(split, {}).setdefault(f"{label} | {metric}", Counter())[said] += 1
    for split, rows in counts.items():
        print(f"\n### {split} against {REFERENCE}, over tasks and sizes\n\n| | | better | tie | worse |")
        print("| --- " * 5 + "|")
        for label, count in sorted(rows.items(), key=lambda item: item[0].split(" | ")[1]):
            print(f"| {label} | {count['better']} | {count['tie']} | {count['worse']} |")


SIZES: Mapping[str, tuple[int, ...]] = {
    "trec6": (100, 300, 1000),
    "sst2": (100, 300, 1000),
    "generated": (150, 600),
    "clinc150": (1000,),
}


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the tasks' folders; the hub otherwise")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/auto"))
    parser.add_argument("--tasks", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of training rows; each task's own otherwise")
    parser.add_argument("--entries", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on one thread each")
    parser.add_argument("--show", action="store_true", help="print the tables of what is there, train nothing")
    arguments = parser.parse_args()
    bench = Bench(output_dir=arguments.output_dir, data=arguments.data)
    cells = [
        Cell(task, size, entry, seed)
        for seed in arguments.seeds
        for task in arguments.tasks
        for size in arguments.sizes or SIZES[task]
        for entry in arguments.entries
    ]
    if not arguments.show:
        bench.train(cells, arguments.jobs)
    show(bench, cells)


if __name__ == "__main__":
    main()
