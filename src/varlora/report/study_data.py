"""A study's numbers as the interactive page reads them: plain, exact, and no more than the page shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from varlora.io.files import finite
from varlora.metrics import metric_named, shown_metrics
from varlora.report.figures import BINS, FEW, mean_risk, pooled_bins, thinned
from varlora.report.health_text import remarks, scale_table, sentence, statements
from varlora.report.reading import reading
from varlora.report.results import Comparison
from varlora.report.scales import GROUPS
from varlora.report.statistics import frontier_means
from varlora.report.study import Block, Example, Frontier, ModuleScale, RunHealth, Study, TrainingCurve
from varlora.report.study_tables import (
    OVER,
    completions_table,
    costs_table,
    detection_table,
    frontier_table,
    overview_table,
    record_table,
    study_splits,
)
from varlora.report.tables import Cell, Number, Table, differences_table, results_table
from varlora.report.vocabulary import MARKS, show

EXAMPLES = 20
"""How many of a method's most confident errors, and of its rows of highest mutual information, are on the page."""

POINTS = 150
"""Points of a training curve on the page."""

WRAPPERS = ("weight", "default", "base_model", "model", "modules_to_save")
"""Parts of a checkpoint key that tell nothing of the module."""

PROMPT = 4000
"""Characters of a prompt on the page, of its end: the question stands there."""


def study_data(study: Study) -> dict[str, Any]:
    """Everything on the page, ready for JSON: what JSON cannot hold (NaN, infinities) is None.

    Args:
        study: What was found.

    Example:
        >>> data = study_data(Study(name="arc", reference="AdamW", blocks=()))
        >>> data["name"], data["blocks"]
        ('arc', [])
    """
    data: dict[str, Any] = finite(
        {
            "name": study.name,
            "note": study.note,
            "reference": study.reference,
            "command": study.command,
            "versions": study.versions,
            "code_versions": study.code_versions,
            "mixed_code": study.mixed_code,
            "settings": {
                group: {name: show(value) for name, value in values.items()} for group, values in study.settings.items()
            },
            "measures": {
                how.name: {
                    "title": how.title,
                    "heading": how.heading,
                    "percent": how.percent,
                    "digits": how.decimals,
                    "better": how.better,
                    "meaning": how.meaning,
                }
                for how in map(metric_named, dict.fromkeys([*shown_metrics(), *_compared_by(study)]))
            },
            "marks": MARKS,
            "bins": BINS,
            "few": FEW,
            "cap": EXAMPLES,
            "points": POINTS,
            "overview": _overview(study),
            "blocks": [_block(block) for block in study.blocks],
        }
    )
    return data


def place_of(key: str) -> tuple[int | None, str]:
    """Layer and module of a tensor, from its checkpoint key.

    Args:
        key: As PEFT names tensors.

    Returns:
        The layer's number, None for what stands in none; and the module with the tensor's role.

    Example:
        >>> place_of("base_model.model.model.layers.11.self_attn.q_proj.lora_A.weight")
        (11, 'q_proj A')
        >>> place_of("base_model.model.classifier.weight")
        (None, 'classifier')
    """
    parts = key.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    layer = None if at is None else int(parts[at])
    inner = parts if at is None else parts[at + 1 :]
    names = [part for part in inner if part not in WRAPPERS] or [parts[-1]]
    role = next((i for i, part in enumerate(names) if part in GROUPS), None)
    if role is not None:
        module = names[role - 1] if role else "adapter"
        return layer, f"{module} {'magnitude' if 'magnitude' in names[role] else names[role][-1]}"
    return layer, ".".join(names[-2:] if names[-1] == "bias" else names[-1:])


def most_telling(examples: Sequence[Example], classes: Sequence[str], *, cap: int = EXAMPLES) -> list[Example]:
    """The examples that the page shows: for each method its most confident errors and its highest mutual information.

    Args:
        examples: Of all methods.
        classes: Names of the answers, in the order of an example's probabilities.
        cap: So many of each kind for each method.
    """
    chosen: dict[int, Example] = {}
    for method in dict.fromkeys(name for example in examples for name in example.probabilities):
        answered = [(i, example) for i, example in enumerate(examples) if method in example.probabilities]
        wrong = [
            (-max(example.probabilities[method]), i)
            for i, example in answered
            if _answer(example, method, classes)["answer"] != example.label
        ]
        doubted = [
            (-example.mutual_information[method], i) for i, example in answered if method in example.mutual_information
        ]
        chosen |= {i: examples[i] for ranked in (wrong, doubted) for _, i in sorted(ranked)[:cap]}
    return [chosen[i] for i in sorted(chosen)]


def _compared_by(study: Study) -> list[str]:
    """The metrics of all blocks."""
    compared = [block.comparison for block in study.blocks if block.comparison is not None]
    return list(dict.fromkeys(metric for comparison in compared for metric in comparison.metrics))


def _overview(study: Study) -> dict[str, dict[str, Any]]:
    """Tables over all tasks, by split and metric."""
    overview = {}
    for split in study_splits(study):
        comparisons = [comparison for _, comparison in study.compared(split)]
        metrics = [m for m in _compared_by(study) if all(m in comparison.metrics for comparison in comparisons)]
        if comparisons:
            tables = {metric: _table(overview_table(study, split=split, metric=metric)) for metric in metrics}
            overview[split] = {"metrics": tables, "record": _table(record_table(study, split=split, metrics=metrics))}
    return overview


def _block(block: Block) -> dict[str, Any]:
    comparison = block.comparison
    return {
        "model": block.model,
        "task": block.task,
        "methods": [] if comparison is None else comparison.methods,
        "reference": None if comparison is None else comparison.reference,
        "missing": block.missing,
        "notes": block.notes,
        "splits": {} if comparison is None else {split: _split(comparison, split) for split in comparison.splits},
        "completions": [_table(completions_table(block, split)) for split in block.completions],
        "detection": [_table(detection_table(block, split)) for split in block.detection],
        "frontiers": [_frontier(frontier) for frontier in block.frontiers],
        "examples": [
            {
                "id": example.id,
                "prompt": example.prompt[-PROMPT:],
                "label": example.label,
                "answers": {method: _answer(example, method, block.classes) for method in example.probabilities},
            }
            for example in most_telling(block.examples, block.classes)
        ],
        "examples_of": len(block.examples),
        "health": [_health(run) for run in block.health],
        "scales": _scales(block.scales),
        "curves": [_curve(curve) for curve in block.curves],
        "costs": _table(costs_table(block.costs)) if block.costs else None,
    }


def _split(comparison: Comparison, split: str) -> dict[str, Any]:
    runs = {method: comparison.runs(method, split) for method in comparison.methods}
    differences = None
    if comparison.has_differences:
        differences = _table(differences_table(comparison, split=split, metrics=comparison.metrics))
    risks = {}
    for method, rows in runs.items():
        coverage, risk = mean_risk(rows)
        shown = thinned(coverage)
        risks[method] = {"coverage": coverage[shown].tolist(), "risk": risk[shown].tolist()}
    return {
        "examples": comparison.num_examples(split),
        "seeds": comparison.seeds(split),
        "reading": reading(comparison, split=split),
        "results": _table(results_table(comparison, split=split, metrics=comparison.metrics)),
        "differences": differences,
        "bins": {method: [_bin(bin) for bin in pooled_bins(rows)] for method, rows in runs.items()},
        "risk": risks,
    }


def _bin(bin: Any) -> dict[str, Any]:
    right = round(bin.count * bin.accuracy) if bin.count else 0
    return {**vars(bin), "right": right, "wrong": bin.count - right}


def _frontier(frontier: Frontier) -> dict[str, Any]:
    points = [
        {
            "label": place.label,
            "value": place.value,
            "seeds": max(spread.seeds for spread in place.metrics.values()),
            "metrics": {name: [spread.mean, spread.se] for name, spread in place.metrics.items()},
        }
        for place in frontier_means(frontier)
    ]
    over, short = OVER[frontier.over]
    table = _table(frontier_table(frontier))
    return {"over": over, "short": short, "split": frontier.split, "points": points, "table": table}


def _answer(example: Example, method: str, classes: Sequence[str]) -> dict[str, Any]:
    probabilities = example.probabilities[method]
    names = list(classes) or [str(i) for i in range(len(probabilities))]
    first = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {
        "answer": names[first],
        "confidence": probabilities[first],
        "right": probabilities[names.index(example.label)] if example.label in names else None,
        "mutual_information": example.mutual_information.get(method),
    }


def _curve(curve: TrainingCurve) -> dict[str, Any]:
    """What was logged, without the gaps, and of many points every k-th and the last."""
    values = {}
    for name, logged in curve.values.items():
        points = [(step, value) for step, value in zip(curve.steps, logged, strict=True) if value is not None]
        every = math.ceil(len(points) / POINTS) or 1
        kept = points[::-1][::every][::-1]
        values[name] = {"steps": [step for step, _ in kept], "values": [value for _, value in kept]}
    return {"label": curve.label, "seed": curve.seed, "values": values}


def _health(run: RunHealth) -> dict[str, Any]:
    """What a run's health says, in the words that the terminal has."""
    scales = scale_table(run.health)
    return {
        "label": run.label,
        "seed": run.seed,
        "sentence": sentence(run.health),
        "remarks": remarks(run.health, run.run),
        "statements": statements(run.health),
        "scales": None if scales is None else _table(scales),
    }


def _scales(scales: Sequence[ModuleScale]) -> dict[str, Any]:
    """The tensors with their places, and one map for each training and seed: a number for each tensor, or none."""
    tensors = {scale.key: scale.entries for scale in scales}
    maps: dict[tuple[str, int], dict[str, ModuleScale]] = {}
    for scale in scales:
        maps.setdefault((scale.label, scale.seed), {})[scale.key] = scale
    return {
        "tensors": [
            {"key": key, "layer": place_of(key)[0], "module": place_of(key)[1], "entries": entries}
            for key, entries in tensors.items()
        ],
        "maps": [
            {
                "label": label,
                "seed": seed,
                **{
                    name: [getattr(by_key[key], name) if key in by_key else None for key in tensors]
                    for name in ("std", "weights", "snr")
                },
            }
            for (label, seed), by_key in maps.items()
        ],
    }


def _table(table: Table) -> dict[str, Any]:
    """A table with every number as shown and exactly."""
    rows = [{"name": name, "cells": [_cell(cell) for cell in cells]} for name, cells in table.rows]
    return {"caption": table.caption, "headings": table.headings, "rows": rows}


def _cell(cell: Cell) -> dict[str, Any]:
    def shown(part: str | Number) -> Any:
        return part if isinstance(part, str) else {"text": part.text, "value": part.value}

    return {**vars(cell), "lines": [[shown(part) for part in line] for line in cell.lines]}
