"""A plan that takes seconds: the embedded Llama on a generated task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from varlora.compare import Plan, Variant, read_plan

SMALL_PLAN: Mapping[str, Any] = {
    "name": "tiny",
    "reference": "AdamW",
    "seeds": [0],
    "settings": {
        "lora_r": 2,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lora_layers": "top:2",
        "cache_frozen_layers": True,
        "max_steps": 6,
        "save_steps": 2,
        "samples": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
    },
    "models": {"llama": {"model_name_or_path": "embedded"}},
    "tasks": {"world": {"generated": {"train": 16, "validation": 24, "test": 16}}},
    "methods": {
        "adamw": {"settings": {"method": "adamw"}, "rows": {"AdamW": {"mode": "mean"}}},
        "ivon": {
            "settings": {"method": "ivon", "held_out": "none"},
            "rows": {"IVON, mean": {"mode": "mean"}, "IVON, 2 samples": {"mode": "samples"}},
            "curves": [{"over": "temperature", "values": [0, 0.5, 1]}],
        },
    },
}


def written(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The plan in a file, with changes by dotted path; None takes the key out."""
    values = copy.deepcopy(dict(SMALL_PLAN))
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def plan(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Plan:
    """The plan, read; its output folder is folder/out."""
    return read_plan(written(folder, changes), **{"output_dir": folder / "out", **options})


def variant_of(**values: Any) -> Variant:
    """A variant as a plan's row writes it."""
    return Variant.from_dict(values)


def drawing(variant: Variant, samples: int) -> Variant:
    """The same with another number of draws."""
    return replace(variant, config=replace(variant.config, samples=samples))
