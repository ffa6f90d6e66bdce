"""A folder with a tiny model and some rows, and the words of a training with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def write_rows(file: Path, rows: Rows) -> Path:
    """A JSONL file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def reviews(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Labelled sentences."""
    return [
        {"text": f"a {('dull', 'fine')[i % 2]} film {i}", "label": ("negative", "positive")[i % 2]}
        for i in range(first, first + count)
    ]


VALIDATION, TEST = reviews(60, first=200), reviews(45, first=100)
"""Of the run that has decided nothing on its validation rows."""


@dataclass(frozen=True)
class Workshop:
    """Where the tests' model and data are."""

    folder: Path

    @property
    def model(self) -> Path:
        """A random Llama."""
        return self.folder / "llama"

    def training(self, output: Path, **options: object) -> list[str]:
        """The words of a short training."""
        settings: dict[str, object] = {
            "model_name_or_path": self.model,
            "train_file": self.folder / "train.jsonl",
            "test_file": self.folder / "test.jsonl",
            "output_dir": output,
            "max_steps": 4,
            "save_steps": 2,
            "lora_r": 2,
            "samples": 4,
            **options,
        }
        return [
            "train",
            "--no_progress",
            *(f"--{name}={value}" for name, value in settings.items() if value is not None),
        ]
