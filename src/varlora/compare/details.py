"""What a study shows beside its tables: frontiers, examples, the noise of each tensor, training logs, and costs."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch

from varlora.compare.plan import Curve, MethodPlan
from varlora.compare.variant import Variant
from varlora.compare.variant_files import has_all, load_variant, pruned_fraction
from varlora.io.files import read_json_lines
from varlora.metrics import evaluate, mean_log_probs, mutual_information
from varlora.posterior import Mixture
from varlora.posterior.folder import MANIFEST
from varlora.posterior.ops import snr
from varlora.prediction.prediction_setup import remove_tuning
from varlora.report.health_text import remarks
from varlora.report.results import Comparison
from varlora.report.scales import scales_of
from varlora.report.study import Cost, Example, Frontier, FrontierPoint, ModuleScale, RunHealth, TrainingCurve
from varlora.runs.config import RunConfig
from varlora.runs.data import load_task
from varlora.runs.folder import LOG, RunFolder
from varlora.runs.measure import IN_SCOPE

Runs = Mapping[tuple[str, int], RunFolder]
"""By method and seed."""
KEPT = ("adapter_config.json", "adapter_model.safetensors", MANIFEST, "posterior.safetensors")
"""Files that the trained posterior is made of."""
NOT_LOGGED = ("epoch", "step", "member", "total_flos")
"""Names in the trainer's log that are no curves; times are none either."""


def frontiers_of(
    methods: Mapping[str, MethodPlan], runs: Runs, comparison: Comparison | None, seeds: Sequence[int]
) -> tuple[list[Frontier], list[str]]:
    """The curves of all methods, one frontier for each thing that is varied, with the table's rows beside them.

    Args:
        methods: of the plan.
        runs: that are there.
        comparison: the table.
        seeds: of the table.

    Returns:
        The frontiers, and which curves are not complete, in words.
    """
    points: dict[str, dict[tuple[str, int, float], FrontierPoint]] = {}
    gaps = []
    for name, method in methods.items():
        for curve in method.curves:
            label, lacking = label_of(name, curve), []
            for seed in seeds:
                run = runs.get((name, seed))
                if run is None or IN_SCOPE not in run.facts["task"]["rows"] or not has_all(run, curve.variants()):
                    lacking.append(seed)
                    continue
                for variant in curve.variants():
                    value = _value(run, curve, variant)
                    prediction = load_variant(run, variant, IN_SCOPE)
                    known = prediction.labels >= 0
                    metrics = evaluate(prediction.log_probs[known], prediction.labels[known])
                    point = FrontierPoint(label=label, seed=seed, value=value, metrics=metrics)
                    points.setdefault(curve.over, {})[label, seed, value] = point
            if lacking:
                gaps.append(f"the curve of {label} over {curve.over}: seed {', '.join(map(str, lacking))} not there")
    beside = []
    if points and comparison is not None and IN_SCOPE in comparison.splits:
        for label, summary in comparison.summary(IN_SCOPE).items():
            beside += [
                FrontierPoint(label=label, seed=seed, value=None, metrics=metrics)
                for seed, metrics in zip(summary.seeds, summary.per_seed, strict=True)
            ]
    return [
        Frontier(over=over, split=IN_SCOPE, points=[*of_field.values(), *beside]) for over, of_field in points.items()
    ], gaps


def label_of(method: str, curve: Curve) -> str:
    """A curve's name: the method's, and whatever else is not the default.

    Example:
        >>> variant = Variant.from_dict({"prune_by": "random", "temperature": 2})
        >>> label_of("ivon", Curve(over="prune", values=(0.1,), variant=variant))
        'ivon, by random, τ = 2'
    """
    config, chosen, parts = curve.variant.config, curve.variant.chosen, [method]
    pruned = "prune" in chosen or config.prune != 0
    if config.mode != "samples":
        parts.append(config.mode)
    if curve.over == "prune" or pruned:
        parts.append(f"by {config.prune_by}" + (" within tensors" if config.prune_scope == "tensor" else ""))
    if curve.over != "prune" and pruned:
        parts.append("pruned" if "prune" in chosen else f"{100 * config.prune:g} % pruned")
    if curve.over != "temperature" and config.temperature != 1:
        parts.append(f"τ = {config.temperature:g}")
    if curve.over != "samples" and config.samples is not None:
        parts.append(f"{config.samples} samples")
    if "logit_temperature" in chosen or config.logit_temperature is not None:
        parts.append("logit temperature")
    return ", ".join(parts)


def _value(run: RunFolder, curve: Curve, variant: Variant) -> float:
    if curve.over == "prune":
        return pruned_fraction(run, variant)
    if curve.over == "temperature":
        return variant.config.temperature
    assert variant.config.samples is not None
    return float(variant.config.samples)


def examples_of(comparison: Comparison | None, config: RunConfig | None) -> tuple[list[Example], str]:
    """The test rows as every method answered them, averaged over seeds; no model is loaded.

    Where each seed has rows of its own, only the first seed's are shown.

    Args:
        comparison: the table.
        config: the settings of a run of the first seed, which name the rows.

    Returns:
        The examples, and a note: why there are none, or of which seed they are.
    """
    if comparison is None or config is None or IN_SCOPE not in comparison.splits:
        return [], ""
    own = comparison.own_examples(IN_SCOPE)
    runs = {method: comparison.runs(method, IN_SCOPE)[: 1 if own else None] for method in comparison.methods}
    first = next(iter(runs.values()))[0]
    try:
        task = load_task(config)
    except (ValueError, OSError) as error:
        return [], f"examples are left out: the rows could not be loaded ({error})"
    rows = task.rows(IN_SCOPE)
    places = {str(name): i for i, name in enumerate(rows["id"])}
    labels = rows["label"][:]
    if any(
        name not in places or labels[places[name]] != label
        for name, label in zip(first.ids, first.labels.tolist(), strict=True)
    ):
        return [], "examples are left out: the test rows are no longer those that the runs were measured on"
    prompts = rows["prompt"][:]
    probabilities = {
        method: torch.stack([mean_log_probs(row.log_probs).exp() for row in of_method]).mean(0)
        for method, of_method in runs.items()
    }
    information = {
        method: torch.stack([mutual_information(row.log_probs) for row in of_method]).mean(0)
        for method, of_method in runs.items()
        if all(row.log_probs.shape[1] > 1 for row in of_method)
    }
    examples = [
        Example(
            id=name,
            prompt=prompts[places[name]],
            label=task.answers[label],
            probabilities={method: array("d", values[i].tolist()) for method, values in probabilities.items()},
            mutual_information={method: float(values[i]) for method, values in information.items()},
        )
        for i, (name, label) in enumerate(zip(first.ids, first.labels.tolist(), strict=True))
    ]
    return examples, f"examples: the rows of seed {first.seed}; each seed has its own" if own else ""


def health_of_runs(runs: Runs) -> list[RunHealth]:
    """How each posterior does, from its folder alone; a point mass only where there is something to be said of it."""
    health = [
        RunHealth(label=method, seed=seed, run=str(run.path), health=run.health())
        for (method, seed), run in runs.items()
    ]
    return [one for one in health if one.health.kind != "point_mass" or remarks(one.health)]


def scales_of_runs(runs: Runs) -> list[ModuleScale]:
    """Noise, weights and signal-to-noise of every tensor that has noise, of each run.

    Of a mixture it is the noise within its components, and its first component's signal-to-noise.
    """
    scales = []
    for (method, seed), run in runs.items():
        q = remove_tuning(run.posterior)
        groups, _ = scales_of(q)
        if not groups:
            continue
        ratios = snr(q.components[0] if isinstance(q, Mixture) else q)
        scales += [
            ModuleScale(
                label=method,
                seed=seed,
                key=scale.key,
                std=scale.noise,
                weights=scale.weights,
                snr=float(ratios[scale.key].double().median()),
                entries=scale.entries,
            )
            for scale in sorted((scale for group in groups for scale in group.tensors), key=lambda scale: scale.key)
        ]
    return scales


class _Entry(TypedDict, total=False):
    """A line of the trainer's log, as far as it is read."""

    member: int
    step: int


def curves_of(runs: Runs) -> list[TrainingCurve]:
    """What the trainer has logged, but for times; an ensemble's members each by itself."""
    curves = []
    for (method, seed), run in runs.items():
        file = run.path / LOG
        entries = read_json_lines(file, _Entry) if file.exists() else []
        for member in dict.fromkeys(entry.get("member") for entry in entries):
            steps: dict[int, dict[str, float]] = {}
            for entry in entries:
                if entry.get("member") == member and "step" in entry:
                    steps.setdefault(int(entry["step"]), {}).update(_numbers(entry))
            steps = {step: values for step, values in sorted(steps.items()) if values}
            names = dict.fromkeys(name for values in steps.values() for name in values)
            if steps:
                curves.append(
                    TrainingCurve(
                        label=method if member is None else f"{method}, member {member}",
                        seed=seed,
                        steps=list(steps),
                        values={name: [values.get(name) for values in steps.values()] for name in names},
                    )
                )
    return curves


def _numbers(entry: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in entry.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and name not in NOT_LOGGED
        and not name.endswith(("_runtime", "_per_second"))
    }


def costs_of(runs: Runs, predict_seconds: Mapping[tuple[str, int], Mapping[str, float]]) -> list[Cost]:
    """What each training cost.

    Args:
        runs: that are there.
        predict_seconds: by method and seed, by row's label.
    """
    return [
        Cost(
            label=method,
            seed=seed,
            train_seconds=run.train_seconds,
            predict_seconds=predict_seconds.get((method, seed), {}),
            peak_memory_bytes=run.facts.get("peak_memory_bytes"),
            file_bytes=sum((run.path / name).stat().st_size for name in KEPT if (run.path / name).is_file()),
        )
        for (method, seed), run in runs.items()
    ]
