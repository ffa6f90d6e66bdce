"""Finished runs, compared as they are: the plan and the cells that they would have been, and what came of them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from varlora.compare.cell import Cell
from varlora.compare.gather import gather
from varlora.compare.plan import MethodPlan, Plan
from varlora.compare.variant import Variant
from varlora.io.nearest import nearest
from varlora.posterior import PredictionConfig
from varlora.prediction.prediction_setup import modes_of, remove_tuning
from varlora.report.study import Study
from varlora.runs.config import PLACES, RunConfig
from varlora.runs.folder import RunFolder, read_run

FREE = (*PLACES, "seed", "data_seed")
"""Settings in which the seeds of one method may differ; files and folders may, too, since rows are compared anyway."""


def study_of_runs(folders: Sequence[str | Path], *, reference: str | None = None) -> Study:
    """What some runs have found; arguments and errors as of `plan_of_runs`."""
    study = gather(*plan_of_runs(folders, reference=reference))
    words = ["varlora", "report", *map(str, folders), *(["--reference", reference] if reference is not None else [])]
    return dataclasses.replace(study, command=shlex.join(words), code_versions=(), mixed_code=False)


def plan_of_runs(folders: Sequence[str | Path], *, reference: str | None = None) -> tuple[Plan, tuple[Cell, ...]]:
    """A plan and its cells, for runs that were trained one by one.

    Each of a run's ways to predict is a row of the tables, called by its method and mode: "ivon, samples". Runs are
    taken as training left them; what `varlora tune` chose is left aside.

    Args:
        folders: run folders of one task; runs of one method and model must differ by their seed.
        reference: which row the others are compared with; that of `adamw`, or the first, by default.

    Raises:
        ValueError: a folder is no run, the tasks differ, two runs cannot be told apart, or runs of one method differ in
            more than their seed.
    """
    runs = [read_run(folder) for folder in folders]
    _check_task(runs)
    models = _models(runs)
    cells: dict[tuple[str, str, int], Cell] = {}
    first_runs: dict[tuple[str, str], RunFolder] = {}
    rows: dict[str, dict[str, Variant]] = {}
    for run in runs:
        method, seed = run.config.method, run.config.seed
        made = _cell(run, models[_model_of(run.config)])
        key = (made.model, method, seed)
        if key in cells:
            raise ValueError(
                f"{cells[key].folder} and {run.path} are both {method} with seed {seed}, so their rows would have one "
                "name. Leave one out, or compare settings with a plan: see docs/compare.md."
            )
        _check_settings(run, first_runs.setdefault((made.model, method), run))
        cells[key] = made
        rows.setdefault(method, {}).update({f"{method}, {v.config.mode}": v for v in made.variants})
    labels = [label for method in rows.values() for label in method]
    first = "adamw, mean" if "adamw, mean" in labels else labels[0]
    if reference is not None and reference not in labels:
        raise ValueError(f"there is no row {reference!r} to compare with; {nearest(reference, labels)}")
    plan = Plan(
        name=str(runs[0].facts["task"]["name"]),
        output_dir=runs[0].path.parent,
        reference=reference or first,
        seeds=tuple(sorted({cell.seed for cell in cells.values()})),
        models={model: {} for model in dict.fromkeys(models.values())},
        tasks={str(runs[0].facts["task"]["name"]): {}},
        methods={name: MethodPlan(name=name, settings=_given(runs, name), rows=own) for name, own in rows.items()},
    )
    return plan, tuple(cells.values())


def _cell(run: RunFolder, model: str) -> Cell:
    modes = modes_of(remove_tuning(run.posterior), run.config.samples)
    return Cell(
        model=model,
        task=str(run.facts["task"]["name"]),
        method=run.config.method,
        seed=run.config.seed,
        config=run.config,
        identity=run.facts["fingerprint"],
        code_version="",
        folder=run.path,
        variants=tuple(Variant(config=PredictionConfig(mode=mode)) for mode in modes),
    )


def _check_task(runs: Sequence[RunFolder]) -> None:
    tasks = {str(run.facts["task"]["name"]): run.path for run in runs}
    if len(tasks) > 1:
        (one, here), (other, there), *_ = tasks.items()
        raise ValueError(
            f"{here} was trained on {one!r} and {there} on {other!r}; give runs of one task, or compare several tasks "
            "with a plan: see docs/compare.md."
        )


def _check_settings(run: RunFolder, other: RunFolder) -> None:
    """Refuses runs of one method that differ in more than their seed."""
    for name, (value, there) in run.config.differences(other.config).items():
        free = name in FREE or (name.endswith(("_file", "_dir")) and name != "gguf_file")
        if not free:
            raise ValueError(
                f"{other.path} and {run.path} are both {run.config.method}, but differ in more than their seed: "
                f"{name} is {there!r} and {value!r}. Leave one out, or compare settings with a plan: see "
                "docs/compare.md."
            )
    if run.of_other_defaults != other.of_other_defaults:
        earlier = run if run.of_other_defaults else other
        raise ValueError(
            f"{other.path} and {run.path} are both {run.config.method}, but {earlier.path} was trained by a "
            "version of varlora whose defaults were others. Train it anew, or leave one out."
        )


def _given(runs: Sequence[RunFolder], method: str) -> dict[str, Any]:
    """The settings of a method's first run that are not the defaults."""
    config = next(run.config for run in runs if run.config.method == method)
    return {name: value for name, value in config.given().items() if name not in FREE}


def _models(runs: Sequence[RunFolder]) -> dict[str, str]:
    """A short name of each model; the whole where two have the same."""
    paths = dict.fromkeys(_model_of(run.config) for run in runs)
    short = [Path(path).name for path in paths]
    return {path: Path(path).name if short.count(Path(path).name) == 1 else path for path in paths}


def _model_of(config: RunConfig) -> str:
    """The model's place; a GGUF file's with its name, as a folder may hold several."""
    parts = (config.model_name_or_path, config.gguf_file)
    return "/".join(part for part in parts if part is not None)
