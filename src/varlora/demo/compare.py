"""The demo: AdamW, AdamW with temperature scaling and IVON on the world's task, over several seeds.

The task is the same for all seeds; a seed decides initialisation, data order and noise. The path is the one that ARC on
a Llama of billions of parameters takes: JSONL rows, lettered prompts, answer tokens, LoRA, Trainer, posterior.

AdamW's learning rate (of 2e-4, 5e-4, 1e-3, 2e-3) was chosen by validation NLL on tasks 100 to 102, which the demo does
not show. IVON runs with its defaults at the same learning rate; nothing of it was chosen. The pruning fraction and the
temperature are chosen for each seed on the validation rows.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from varlora.checkpoint import save_posterior
from varlora.demo.data import model_folder, write_task
from varlora.folders import check_target
from varlora.methods import with_temperatures
from varlora.ops import prune
from varlora.posterior import PredictionConfig
from varlora.prediction import Prediction
from varlora.report import Comparison, PosteriorFacts, Row, RunNotes, write_page
from varlora.runs import RunConfig, RunResult, predict_split, run
from varlora.runs.folder import finite, versions
from varlora.runs.selection import largest_free_fraction

MARKER = "demo.json"
COMPARISON = "comparison.json"
REPORT = "report.html"
TASK_SEED = 0
SAMPLES = 10

COMMON: dict[str, Any] = {
    "model_name_or_path": str(model_folder()),
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "max_steps": 700,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 125,
    "save_steps": 10_000,
    "samples": SAMPLES,
}
METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"learning_rate": 5e-4},
    "ivon": {"learning_rate": 5e-4},
}


def run_demo(
    *, output_dir: Path, seeds: Sequence[int] = (0, 1, 2), overwrite: bool = False, progress: bool = True
) -> Comparison:
    """Trains and compares, and writes a folder.

    The folder gets `data/` (the task), `runs/` (one run folder per method and seed, each with its posterior),
    `pruned/` (the pruned posteriors), `comparison.json` and `report.html`.

    Args:
        output_dir: the folder.
        seeds: one run of each method each.
        overwrite: replace the folder of an earlier demo.
        progress: show progress bars.

    Raises:
        ValueError: the folder is taken, or no seed is given.
    """
    if not seeds:
        raise ValueError("give at least one seed.")
    check_target(output_dir, overwrite=overwrite, marker=MARKER)
    if overwrite and output_dir.is_dir():
        shutil.rmtree(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = {"seeds": list(seeds), "common": COMMON, "methods": METHOD_OPTIONS}
    (output_dir / MARKER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    rows: list[Row] = []
    fractions: dict[int, float] = {}
    temperatures: dict[int, float] = {}
    files = write_task(output_dir / "data", TASK_SEED)
    for seed in seeds:
        results = {
            method: run(_config(output_dir, method, seed, files), progress=progress) for method in METHOD_OPTIONS
        }
        temperatures[seed] = _add_adamw(rows, results["adamw"], seed)
        fractions[seed] = _add_ivon(rows, results["ivon"], seed, output_dir / "pruned" / f"ivon-seed-{seed}")

    comparison = Comparison(task="the demo's world: what will somebody want?", rows=rows)
    (output_dir / COMPARISON).write_text(
        json.dumps(finite(comparison.to_dict()), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    write_page(
        comparison,
        output_dir / REPORT,
        title="varlora demo",
        notes=_notes(seeds, temperatures, fractions),
        posterior=_facts(results["ivon"], fractions[seeds[-1]]),
        health=results["ivon"].health,
        version=versions()["varlora"],
    )
    return comparison


def _config(output_dir: Path, method: str, seed: int, files: dict[str, Path]) -> RunConfig:
    return RunConfig(
        **COMMON,
        method=method,
        method_options=METHOD_OPTIONS[method],
        seed=seed,
        train_file=str(files["train"]),
        validation_file=str(files["validation"]),
        test_file=str(files["test"]),
        output_dir=str(output_dir / "runs" / f"{method}-seed-{seed}"),
    )


def _row(label: str, seed: int, prediction: object, train_seconds: float, predict_seconds: float) -> Row:
    assert isinstance(prediction, Prediction)
    return Row(
        method=label,
        seed=seed,
        split="test",
        log_probs=prediction.log_probs,
        labels=prediction.labels,
        train_seconds=train_seconds,
        predict_seconds=predict_seconds,
        logit_temperature=prediction.logit_temperature,
    )


def _add_adamw(rows: list[Row], result: RunResult, seed: int) -> float:
    """Adds AdamW as it is, and with the temperature that its validation rows ask for; returns the temperature."""
    validation = result.predictions["validation"]["mean"]
    assert isinstance(validation, Prediction)
    scaled = with_temperatures(result.posterior, {"mean": validation}, of=f"AdamW, seed {seed}")
    start = time.perf_counter()
    prediction = predict_split(result.setting, scaled, "test", PredictionConfig(mode="mean"))
    seconds = time.perf_counter() - start
    trained = result.seconds["train"]
    rows += [
        _row("AdamW", seed, result.predictions["test"]["mean"], trained, result.seconds["predict/test/mean"]),
        _row("AdamW + temperature", seed, prediction, trained, seconds),
    ]
    return scaled.meta.logit_temperature_of("mean")


def _add_ivon(rows: list[Row], result: RunResult, seed: int, folder: Path) -> float:
    """Adds IVON at the mean, by samples, and pruned as far as validation allows; returns the fraction pruned."""
    q = result.posterior
    fraction = largest_free_fraction(result.setting, q, samples=SAMPLES)
    pruned = prune(q, fraction)
    save_posterior(pruned, folder)
    start = time.perf_counter()
    prediction = predict_split(result.setting, pruned, "test", PredictionConfig(samples=SAMPLES))
    seconds = time.perf_counter() - start
    trained = result.seconds["train"]
    test = result.predictions["test"]
    rows += [
        _row("IVON, mean", seed, test["mean"], trained, result.seconds["predict/test/mean"]),
        _row(f"IVON, {SAMPLES} samples", seed, test["samples"], trained, result.seconds["predict/test/samples"]),
        _row(f"IVON, {SAMPLES} samples, pruned", seed, prediction, trained, seconds),
    ]
    return fraction


def _notes(seeds: Sequence[int], temperatures: Mapping[int, float], fractions: Mapping[int, float]) -> RunNotes:
    return RunNotes(
        task="Questions such as 'What will zapulem want?' with four lettered choices; the answers are noisy, and no "
        "model can be expected to get more than 85 % right.",
        data=["300 training, 150 validation and 500 test rows, about 950 different people.", "All seeds share them."],
        hyperparameters={
            "All": {k: v for k, v in COMMON.items() if k not in ("model_name_or_path", "save_steps")},
            "AdamW": METHOD_OPTIONS["adamw"],
            "IVON": METHOD_OPTIONS["ivon"] | {"recipe": "auto", "ess": "100 * 300"},
        },
        chosen_on_validation={
            "AdamW's learning rate, which IVON shares": "once, on the validation rows of other tasks (100 to 102)",
            "temperature, by seed": ", ".join(f"{t:.2f}" for t in temperatures.values()),
            "pruned fraction, by seed": ", ".join(f"{fraction:.0%}" for fraction in fractions.values()),
        },
        versions=versions(),
        command=f"varlora demo --seeds {' '.join(str(seed) for seed in seeds)}",
    )


def _facts(result: RunResult, fraction: float) -> PosteriorFacts:
    """The last seed's posterior in figures."""
    q = result.posterior
    diagnostics = q.meta.diagnostics or {}
    return PosteriorFacts(
        num_weights=sum(m.numel() for m in q.mean.values()),
        ess=q.meta.ess,
        num_examples=q.meta.num_examples,
        pruned_fraction=fraction,
        skipped_steps=diagnostics["skipped_steps"],
        note="The last seed's posterior.",
    )
