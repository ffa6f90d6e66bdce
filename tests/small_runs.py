"""A run that takes a second: a tiny random model in a folder, and a task that it can learn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from models import tiny_llama
from tiny_tokenizers import word_level
from varlora.runs.config import RunConfig
from varlora.runs.run import run

WORDS = ("fine", "dull", "film", "negative", "positive", "a", "cat", "dog", "cow", "hen")
LEARNED: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"learning_rate": 0.02},
    "temperature": {"learning_rate": 0.02},
    "laplace": {"learning_rate": 0.02},
    "blob": {"learning_rate": 0.02},
    "scalabl": {"learning_rate": 0.02},
    "swag": {"learning_rate": 0.02, "snapshots": 4},
    "tfb": {"learning_rate": 0.02, "draws": 4},
    "ema": {"learning_rate": 0.02, "ema_decay": 0.8},
    "ensemble": {"learning_rate": 0.02, "members": 2},
    "mc_dropout": {"learning_rate": 0.02},
    "ivon": {"learning_rate": 0.02},
}
"""Options with which each method that trains learns the task in `STEPS` steps."""
STEPS = 15
TARGETS = r".*\.(v_proj|down_proj|query|value)"
"""Modules of a tiny Llama, and of a tiny BERT, that suffice to learn the task: each that is adapted costs time."""


def save_model(folder: Path, model: PreTrainedModel | None = None, tokenizer: Any = None, *, layers: int = 1) -> str:
    """A model folder, of a tiny Llama by default."""
    tokenizer = tokenizer if tokenizer is not None else word_level(words=WORDS)
    model = model if model is not None else tiny_llama(vocab_size=len(tokenizer), layers=layers)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def films(rows: int, offset: int = 0) -> list[dict[str, Any]]:
    """Films that are fine (positive) or dull (negative), among animals that do not matter."""
    return [
        {
            "id": f"film-{i}",
            "text": f"a {'fine' if i % 2 else 'dull'} {('cat', 'dog', 'cow', 'hen')[i // 2 % 4]} film",
            "label": "positive" if i % 2 else "negative",
        }
        for i in range(offset, offset + rows)
    ]


def herds(rows: int, offset: int = 0) -> list[dict[str, Any]]:
    """Up to 128 films with three animals each; they all differ, from each other and from `films`."""
    animals = ("cat", "dog", "cow", "hen")
    return [
        {
            "id": f"herd-{i}",
            "text": f"a {('dull', 'fine')[i % 2]} {animals[i // 2 % 4]} {animals[i // 8 % 4]} {animals[i // 32]} film",
            "label": "positive" if i % 2 else "negative",
        }
        for i in range(offset, offset + rows)
    ]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """A JSONL file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def config(folder: Path, model: str, **options: Any) -> RunConfig:
    """Settings of a short run on `films`; its files go into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    method = options.get("method", "ivon")
    data = {
        "train_file": write_rows(folder / "train.jsonl", films(32)),
        "validation_file": write_rows(folder / "validation.jsonl", herds(16)),
        "test_file": write_rows(folder / "test.jsonl", films(24, offset=3)),
    }
    given = {
        "model_name_or_path": model,
        "output_dir": str(folder / "run"),
        "lora_target_modules": TARGETS,
        "max_steps": STEPS,
        "samples": 4,
        **data,
        **LEARNED.get(method, {}),
        **options,
    }
    return RunConfig.from_dict(given)


def finish_herds(folder: Path, model: str, **options: Any) -> Path:
    """A run with 48 validation rows that are no test rows."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "train_file": write_rows(folder / "train-herds.jsonl", [*films(16), *herds(32, offset=64)]),
        "validation_file": write_rows(folder / "held-out.jsonl", herds(48)),
        **({"held_out": "none"} if options.get("method", "ivon") == "ivon" else {}),  # training leaves no temperature
        **options,
    }
    settings = config(folder, model, **given)
    run(settings, progress=False)
    return Path(settings.output_dir)


class Stopped(Exception):
    """What ends a training before its time."""


class StopAfter(TrainerCallback):
    """Raises after a step, as an interrupt would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Stopped


class KeepKilled(TrainerCallback):
    """Copies what a kill would leave of a training's checkpoints: into `kept / "13"` for one in the 13th step."""

    def __init__(self, checkpoints: Path, kept: Path, steps: Collection[int]) -> None:
        self.checkpoints, self.kept, self.steps, self.taken = checkpoints, kept, steps, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.taken += 1
        if self.taken in self.steps:
            shutil.copytree(self.checkpoints, self.kept / str(self.taken))
