"""Finished cells, gathered into a study: what can be compared is, and what is not there is said.

A block (one model on one task) compares those rows, over those seeds, that use most of what is there: every row has all
of the seeds. Rows and seeds that are left out are listed with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varlora.compare.cell import Cell
from varlora.compare.details import costs_of, curves_of, examples_of, frontiers_of, health_of_runs, scales_of_runs
from varlora.compare.plan import Plan
from varlora.compare.variant import Variant
from varlora.compare.variant_files import (
    explain_unfit,
    has_all,
    load_variant,
    logit_temperature,
    pruned_fraction,
    read_tuned,
    seconds,
)
from varlora.metrics import ScopeRows, evaluate_rows, shown_metrics
from varlora.prediction.prediction import Prediction
from varlora.report.health_text import skipped_in_words
from varlora.report.results import Comparison
from varlora.report.rows import Row
from varlora.report.study import Block, Study
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.measure import IN_SCOPE

Nested = dict[str, dict[str, dict[str, list[float]]]]


def is_compared(split: str) -> bool:
    """Whether a split is in tables: it has not been learned from, nor is it there to be chosen on.

    Example:
        >>> [split for split in ("train", "validation", "test", "ood", "ood_validation") if is_compared(split)]
        ['test', 'ood']
    """
    return split != "train" and not split.endswith("validation")


def gather(plan: Plan, cells: Sequence[Cell]) -> Study:
    """What the cells of a plan have found so far.

    Args:
        plan: the plan.
        cells: its cells, all or some of them.

    Raises:
        ValueError: a finished run's predictions are damaged.
    """
    blocks: list[Block] = []
    versions: dict[str, set[str]] = {}
    code: dict[str, set[str]] = {}
    for model in plan.models:
        for task in plan.tasks:
            chosen = [cell for cell in cells if (cell.model, cell.task) == (model, task)]
            runs = {cell: _read(cell) for cell in chosen}  # a block's posteriors are held at a time, and no more
            for cell, run in runs.items():
                if isinstance(run, RunFolder):
                    code.setdefault(cell.config.method, set()).add(cell.code_version)
                    for name, version in run.facts["versions"].items():
                        versions.setdefault(name, set()).add(version)
            if runs:
                blocks.append(_block(plan, model, task, runs))
    return Study(
        name=plan.name,
        note=plan.note,
        reference=plan.reference,
        blocks=blocks,
        settings=_settings(plan),
        versions={name: ", ".join(sorted(used)) for name, used in versions.items()},
        code_versions=sorted({version for versions in code.values() for version in versions}),
        mixed_code=is_mixed(code, plan.code_versions),
        command=f"varlora compare {plan.output_dir / 'plan.yaml'}",
    )


def is_mixed(code: Mapping[str, set[str]], accepted: Sequence[str]) -> bool:
    """Whether runs were made by different versions of one code.

    Args:
        code: of each method, the versions that made its runs; they differ between methods in any case.
        accepted: versions of a former code whose runs the plan takes as they are.

    Example:
        >>> is_mixed({"adamw": {"0"}, "ivon": {"1"}}, ()), is_mixed({"adamw": {"0"}, "ivon": {"1"}}, ["1"])
        (False, True)
        >>> is_mixed({"adamw": {"0", "1"}}, ()), is_mixed({"adamw": {"0"}, "ivon": {"0"}}, ["0"])
        (True, False)
    """
    former = {version for versions in code.values() for version in versions if version in accepted}
    every = {version for versions in code.values() for version in versions}
    return any(len(versions) > 1 for versions in code.values()) or 0 < len(former) < len(every)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSource:
    """Where one row of the tables comes from.

    Attributes:
        label: the row's.
        method: the training's name in the plan.
        variant: how the runs are predicted with.
        runs: those that have been, by seed.
    """

    label: str
    method: str
    variant: Variant
    runs: Mapping[int, RunFolder]


def choose_seeds(available: Mapping[str, Iterable[int]], reference: str | None = None) -> tuple[int, ...]:
    """The seeds over which most can be compared: as many rows times seeds as possible, then as many rows.

    Args:
        available: by row, the seeds that are there.
        reference: a row that must be among those that can be compared, if it is there at all.

    Returns:
        The seeds, ascending; rows that lack one of them cannot be compared. Empty if there is nothing.

    Example:
        >>> choose_seeds({"AdamW": [0, 1, 2], "IVON": [0, 1, 2], "Laplace": [0]})
        (0, 1, 2)
        >>> choose_seeds({"AdamW": [0, 1], "IVON": [0], "Laplace": [0]})
        (0,)
    """
    sets = [set(seeds) & set(available.get(reference or "", seeds)) for seeds in available.values()]
    candidates: set[tuple[int, ...]] = set()
    for there in filter(None, sets):  # what any of the rows so far have in common
        candidates |= {tuple(sorted(there & set(other))) for other in candidates} | {tuple(sorted(there))}

    def worth(candidate: tuple[int, ...]) -> tuple[int, int, list[int]]:
        rows = sum(there.issuperset(candidate) for there in sets)
        return rows * len(candidate), rows, [-seed for seed in candidate]

    candidates.discard(())
    return max(candidates, key=worth) if candidates else ()


def _read(cell: Cell) -> RunFolder | str:
    """A cell's run, or why it is not there."""
    if cell.trained:
        try:
            return read_run(cell.folder)
        except ValueError as error:
            return f"cannot be read: {error}"
    state = cell.state()
    if state == "failed":
        return f"failed: see {cell.error_file.name}"
    return "begun, not finished" if state == "unfinished" else "not run yet"


def _block(plan: Plan, model: str, task: str, cells: Mapping[Cell, RunFolder | str]) -> Block:
    sources, missing = _sources(plan, cells)
    seeds = choose_seeds({source.label: source.runs for source in sources if source.runs}, plan.reference)
    rows = [source for source in sources if seeds and set(seeds) <= set(source.runs)]
    missing += [_left_out(source, seeds) for source in sources if source.runs and set(source.runs) != set(seeds)]
    runs = {
        (cell.method, cell.seed): run
        for cell, run in cells.items()
        if isinstance(run, RunFolder) and cell.seed in (seeds or plan.seeds)
    }
    shared: dict[str, Any] = {
        "model": model,
        "task": task,
        "missing": missing,
        "health": health_of_runs(runs),
        "scales": scales_of_runs(runs),
        "curves": curves_of(runs),
    }
    if any(run.is_completion for run in runs.values()):
        measured, notes = _completions(rows, seeds), _notes(runs.values(), [])
        return Block(**shared, comparison=None, notes=notes, completions=measured, costs=costs_of(runs, {}))
    judged, detection = _predictions(rows, seeds)
    reference = plan.reference if any(source.label == plan.reference for source in rows) else None
    if rows and reference is None:
        missing.append(f"{plan.reference}: the reference is not among the rows, so that nothing is compared with it")
    comparison = None
    if judged:
        try:
            comparison = Comparison(
                task=task, rows=judged, reference=reference, metrics=(*shown_metrics(), *plan.metrics)
            )
        except ValueError as error:
            missing.append(f"the rows cannot be compared: {error}")
    methods = {cell.method: plan.methods[cell.method] for cell in cells}
    frontiers, gaps = frontiers_of(methods, runs, comparison, seeds)
    first = next((cell for cell, run in cells.items() if isinstance(run, RunFolder) and cell.seed in seeds[:1]), None)
    examples, why = examples_of(comparison, first.config if first is not None else None)
    took = {
        (source.method, seed): {
            other.label: time
            for other in rows
            if other.method == source.method
            and (time := seconds(other.runs[seed], other.variant, IN_SCOPE)) is not None
        }
        for source in rows
        for seed in seeds
        if IN_SCOPE in source.runs[seed].facts["task"]["rows"]
    }
    missing += gaps
    return Block(
        **shared,
        comparison=comparison,
        notes=_notes(runs.values(), rows) + ([why] if why else []),
        detection=detection,
        frontiers=frontiers,
        examples=examples,
        costs=costs_of(runs, took),
        classes=next((list(run.facts["task"]["answers"]) for run in runs.values()), []),
    )


def _sources(plan: Plan, cells: Mapping[Cell, RunFolder | str]) -> tuple[list[RowSource], list[str]]:
    """The rows of a block's table with the runs that they have, and what they lack, in words."""
    sources: list[RowSource] = []
    lacks: dict[str, dict[str, list[int]]] = {}
    for name, method in plan.methods.items():
        own = {cell.seed: (cell, run) for cell, run in cells.items() if cell.method == name}
        for label, variant in method.rows.items() if own else ():
            runs: dict[int, RunFolder] = {}
            lacking: dict[str, list[int]] = {}
            for seed in sorted(own):
                cell, run = own[seed]
                if isinstance(run, RunFolder) and has_all(run, [variant]):
                    runs[seed] = run
                else:
                    lacking.setdefault(run if isinstance(run, str) else _not_predicted(cell, run, variant), []).append(
                        seed
                    )
            sources.append(RowSource(label=label, method=name, variant=variant, runs=runs))
            lacks[label] = lacking
    if len(lacks) > 1 and all(lacking == next(iter(lacks.values())) for lacking in lacks.values()):
        lacks = {"every row": next(iter(lacks.values()))}
    return sources, [
        f"{label}: {_seeds(seeds)} ({why})" for label, lack in lacks.items() for why, seeds in lack.items()
    ]


def _not_predicted(cell: Cell, run: RunFolder, variant: Variant) -> str:
    if cell.error_file.is_file():
        return f"failed: see {cell.error_file.name}"
    return (
        f"impossible: {why}" if (why := explain_unfit(run, variant)) is not None else "trained, not predicted with yet"
    )


def _left_out(source: RowSource, seeds: Sequence[int]) -> str:
    """What is there but not in the table."""
    if set(seeds) <= set(source.runs):
        extra = sorted(set(source.runs) - set(seeds))
        return f"{source.label}: {_seeds(extra)} (there, but not of every row)"
    return f"{source.label}: not in the table, which is of {_seeds(seeds)}; it has {_seeds(sorted(source.runs))}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _note(values: Nested, split: str, row: str, metric: str, value: float) -> None:
    values.setdefault(split, {}).setdefault(row, {}).setdefault(metric, []).append(value)


def _predictions(rows: Sequence[RowSource], seeds: Sequence[int]) -> tuple[list[Row], Nested]:
    """The rows to compare, and how well rows out of scope are told from those in scope."""
    judged: list[Row] = []
    detection: Nested = {}
    for source in rows:
        for seed in seeds:
            run = source.runs[seed]
            splits = sorted(filter(is_compared, run.facts["task"]["rows"]), key=lambda split: split != IN_SCOPE)
            predictions = {split: load_variant(run, source.variant, split) for split in splits}
            inside = predictions.get(IN_SCOPE)
            for split, prediction in predictions.items():
                if bool((prediction.labels >= 0).any()):
                    judged.append(_row(source, seed, split, prediction))
                elif inside is not None:
                    for metric, value in evaluate_rows(ScopeRows(inside.log_probs, prediction.log_probs)).items():
                        _note(detection, split, source.label, metric, value)
    return judged, detection


def _row(source: RowSource, seed: int, split: str, prediction: Prediction) -> Row:
    run, known = source.runs[seed], prediction.labels >= 0
    return Row(
        method=source.label,
        seed=seed,
        split=split,
        log_probs=prediction.log_probs[known],
        labels=prediction.labels[known],
        ids=tuple(name for name, kept in zip(prediction.ids, known.tolist(), strict=True) if kept),
        train_seconds=run.train_seconds,
        predict_seconds=seconds(run, source.variant, split),
        logit_temperature=prediction.logit_temperature,
    )


def _completions(rows: Sequence[RowSource], seeds: Sequence[int]) -> Nested:
    """What was measured of completions, from the runs' metrics."""
    measured: Nested = {}
    for source, seed in itertools.product(rows, seeds):
        mode = source.variant.canonical.config.mode
        for split, modes in source.runs[seed].metrics.items():
            for metric, value in modes.get(mode, {}).items():
                if is_compared(split) and value is not None:
                    _note(measured, split, source.label, metric, value)
    return measured


def _notes(runs: Iterable[RunFolder], rows: Sequence[RowSource]) -> list[str]:
    """What was done with the data, and what validation rows have chosen."""
    runs = list(runs)
    facts = [run.facts["task"] for run in runs]
    notes = [note for fact in facts for note in fact["notes"]]
    for name in ("source", "licence"):
        notes += [f"{name}: {fact[name]}" for fact in facts if fact.get(name)]
    for run in runs:
        if words := skipped_in_words(run.posterior.meta.diagnostics or {}):
            notes.append(f"{run.config.method}, seed {run.config.seed}: {words}")
    for source in rows:
        chosen = source.runs.items()
        if "logit_temperature" in source.variant.chosen:
            values = ", ".join(f"{logit_temperature(run, source.variant):.3g}" for _, run in sorted(chosen))
            notes.append(f"{source.label}: logits divided by {values}, fitted on validation rows")
        if "prune" in source.variant.chosen:
            values = ", ".join(f"{100 * pruned_fraction(run, source.variant):g} %" for _, run in sorted(chosen))
            notes.append(
                f"{source.label}: {values} pruned by {source.variant.config.prune_by}, chosen on validation rows"
            )
        if "tune" in source.variant.chosen:
            notes.append(f"{source.label}, by validation rows: {_tuned_words(source)}")
    return list(dict.fromkeys(notes))


def _tuned_words(source: RowSource) -> str:
    """What validation rows have chosen, and for which seeds."""
    seeds: dict[str, list[int]] = {}
    for seed, run in sorted(source.runs.items()):
        tuned = read_tuned(run, source.variant)
        seeds.setdefault("as trained" if tuned is None else tuned.describe(), []).append(seed)
    return "; ".join(f"{how} ({_seeds(those)})" for how, those in seeds.items())


def _settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """The plan's settings by group, without empty groups."""
    groups: dict[str, Mapping[str, Any]] = {"all runs": plan.settings}
    groups |= {f"model {name}": settings for name, settings in plan.models.items()}
    groups |= {f"task {name}": settings for name, settings in plan.tasks.items()}
    groups |= {f"method {name}": method.settings for name, method in plan.methods.items()}
    for override in plan.overrides:
        when = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in override.when.items())
        groups[f"where {when}"] = {**groups.get(f"where {when}", {}), **override.settings}
    return {name: dict(settings) for name, settings in groups.items() if settings}
