"""What a run found, and its folder with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from varlora.io.files import finite
from varlora.posterior import Posterior
from varlora.posterior.folder import write_posterior_files
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.report import Health
from varlora.report.model_card import model_card
from varlora.runs.folder import (
    CONFIG,
    FACTS,
    GENERATIONS,
    LOG,
    METRICS,
    PREDICTIONS,
    CompletionScores,
    versions,
    write_json,
)
from varlora.runs.setting import Setting
from varlora.tasks import count_overlap


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run found.

    Attributes:
        setting: what was run.
        posterior: what training gave.
        predictions: by split and mode ("mean", "samples", "linearised").
        metrics: the same, measured.
        health: how the posterior does, from the validation rows' predictions.
        seconds: wall-clock seconds of training, and of each prediction.
        resumed: whether the training was resumed, so that the seconds are those since then.
        peak_memory: bytes that the process has held at most since the run began (`varlora.runs.peak_memory`).
        log: the trainer's log, one entry per logged step.
        generations: texts by split and mode, of a task with final answers.
    """

    setting: Setting
    posterior: Posterior
    predictions: Mapping[str, Mapping[str, Prediction | CompletionScores]]
    metrics: Mapping[str, Any]
    health: Health
    seconds: Mapping[str, float]
    resumed: bool = False
    peak_memory: int | None = None
    log: Sequence[Mapping[str, Any]] = ()
    generations: Mapping[str, Mapping[str, Generations]] = field(default_factory=dict)


def write_run(folder: Path, result: RunResult) -> None:
    """Writes a run's files into an existing folder (one from `varlora.io.folders.atomic_folder`)."""
    setting, metrics = result.setting, result.metrics
    config, task = setting.config, setting.task
    write_posterior_files(result.posterior, folder)
    (folder / CONFIG).write_text(
        yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    facts = {
        "fingerprint": config.fingerprint,
        "task": {
            "name": task.name,
            "kind": task.kind,
            "shape": task.shape,
            "answers": list(task.answers),
            "final_answer": task.final_answer,
            "source": task.source,
            "licence": task.licence,
            "notes": list(task.notes),
            "not_read": {split: list(columns) for split, columns in task.not_read.items()},
            "rows": {split: len(rows) for split, rows in task.splits.items()},
            "overlap": count_overlap(task),
            "deciding_nothing": setting.deciding_nothing,
        },
        "seconds": dict(result.seconds),
        "resumed": result.resumed,
        "peak_memory_bytes": result.peak_memory,
        "versions": versions(),
    }
    write_json(folder / FACTS, facts)
    write_json(folder / METRICS, metrics)
    (folder / PREDICTIONS).mkdir()
    for split, modes in result.predictions.items():
        for mode, prediction in modes.items():
            prediction.save(folder / PREDICTIONS / f"{split}.{mode}.parquet")
    for split, texts in result.generations.items():
        (folder / GENERATIONS).mkdir(exist_ok=True)
        for mode, generations in texts.items():
            generations.save(folder / GENERATIONS / f"{split}.{mode}.parquet")
    (folder / LOG).write_text("".join(json.dumps(finite(entry)) + "\n" for entry in result.log), encoding="utf-8")
    card = model_card(
        name=Path(config.output_dir).name,
        kind=result.posterior.kind,
        meta=result.posterior.meta.to_dict(),
        metrics=metrics,
        task=facts["task"],  # type: ignore[arg-type]
        versions=versions(),
        health=result.health,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
