"""What `eval`, `predict` and `decide` share: a decision made as the options ask, and what is said about it."""

from __future__ import annotations

import dataclasses
import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from varlora.cli.console import numbers_table, out, say
from varlora.io.words import counted
from varlora.posterior import PredictionConfig
from varlora.posterior.manifest import read_manifest
from varlora.prediction.prediction import Prediction
from varlora.runs.calibration import CALIBRATION, Calibration, calibrate, loaded_as
from varlora.runs.choose_decision import Wanted
from varlora.runs.data import load_new_rows
from varlora.runs.decision import Decision, Groups
from varlora.runs.folder import RunFolder
from varlora.runs.measure import IN_SCOPE
from varlora.runs.predicted_as import PredictedAs
from varlora.runs.setting import LoadedModel
from varlora.tasks.rows import Records
from varlora.tasks.task import VALIDATION

logger = logging.getLogger(__name__)

CHOSEN, HOLDS, APPROXIMATE, NONE, ALIKE = "chosen here", "holds", "approximate", "none", "if drawn alike"
"""What a guarantee says of a split: nothing new; it holds; it nearly does, since the rows that it is from have decided
other things, too; these are rows of another kind; it depends on the file's."""
BY_GROUP = "Each group's own threshold guarantees its rows; of all rows together this is said of the common threshold: "
BANDS = ("confidence_bands", "accuracy_bands")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "delta": ("target_accuracy", "accuracy_bands"),
    "sureness": ("coverage", "target_accuracy", *BANDS),
    "set_score": ("prediction_sets",),
    "calibration_file": ("coverage", "target_accuracy", "prediction_sets", "cost_wrong", "cost_file", *BANDS),
    "group_column": ("coverage", "target_accuracy", "prediction_sets", "recalibrate"),
}
"""Options that have no effect without one of others."""


def wanted_of(arguments: Namespace, *, more: bool = False) -> Wanted | None:
    """What the command line asks for; None if nothing.

    Args:
        arguments: of the command line.
        more: whether it asks for something else, too.

    Raises:
        ValueError: a coverage and an accuracy are asked for at once.
    """
    for name, others in NEEDS.items():
        there = [other for other in others if hasattr(arguments, other)]
        if getattr(arguments, name, None) is not None and all(getattr(arguments, other) is None for other in there):
            logger.warning("--%s has no effect without %s", name, " or ".join(f"--{other}" for other in there))
    if arguments.coverage is not None and arguments.target_accuracy is not None:
        raise ValueError("give --coverage or --target_accuracy, not both: one threshold cannot be chosen for either.")
    if not more and arguments.coverage is arguments.target_accuracy is arguments.prediction_sets is None:
        return None
    given = {"delta": arguments.delta, "by": arguments.sureness, "set_score": arguments.set_score}
    return Wanted(
        coverage=arguments.coverage,
        accuracy=arguments.target_accuracy,
        sets=arguments.prediction_sets,
        **{name: value for name, value in given.items() if value is not None},
    )


def calibrate_by_options(
    arguments: Namespace,
    run: RunFolder,
    config: PredictionConfig,
    *,
    reported: Sequence[str],
    loaded: LoadedModel | None = None,
    records: Records | None = None,
) -> Calibration:
    """The rows that a decision is chosen on: those of --calibration_file, read already or not, or the run's own."""
    task = None
    if (rows := records or arguments.calibration_file) is not None:
        columns = arguments.dataset_columns
        task = load_new_rows(rows, run, split=CALIBRATION, labelled=True, columns=columns)
    progress = not arguments.no_progress
    return calibrate(run, config, loaded=loaded, reported=reported, file=task, progress=progress)


def report_of(
    decision: Decision, predictions: Mapping[str, Prediction], *, groups: Mapping[str, Groups] | None = None
) -> dict[str, Any]:
    """What `eval` writes: the thresholds, what they promise, and what came of them in every split.

    Args:
        decision: the decision.
        predictions: of splits.
        groups: of their rows, where the decision goes by group.
    """
    of_rows = groups if groups is not None else {}
    report: dict[str, Any] = {
        "mode": decision.predicted_as.mode,
        "draws": decision.predicted_as.draws,
        "chosen_on": dataclasses.asdict(decision.chosen_on),
    }
    if decision.threshold is not None:
        report["threshold"] = {"sureness": decision.by, **dataclasses.asdict(decision.threshold)}
        report["guarantee"] = (BY_GROUP if decision.group_thresholds else "") + decision.threshold.sentence
    if decision.sets is not None:
        report["set_threshold"] = dataclasses.asdict(decision.sets)
        report["set_guarantee"] = (BY_GROUP if decision.group_sets else "") + decision.sets.sentence
    report["promises"] = decision.promises
    report["splits"] = {
        split: {"guarantee": _guarantee(split, decision), **decision.measure(prediction, of_rows.get(split))}
        for split, prediction in predictions.items()
    }
    return report


def kept_decision(run: RunFolder, predictions: Mapping[str, Prediction]) -> tuple[Decision, str] | None:
    """What `varlora decide` has kept, and in which of these modes it is to be measured; None where it cannot be.

    Args:
        run: the run, with what was tuned left in or taken out.
        predictions: of some rows, by mode.
    """
    try:
        decision = Decision.load(run.path)
        if decision is not None:
            decision.check_loaded_as(loaded_as(run))
    except ValueError as error:
        logger.warning("%s", error)
        return None
    if decision is None:
        return None
    modes = [mode for mode, one in predictions.items() if PredictedAs.of(one) == decision.predicted_as]
    tuned = run.posterior.meta.tuned
    if not modes or read_manifest(run.path)["meta"].get("tuned") != (None if tuned is None else tuned.to_dict()):
        logger.warning(
            "%s is not measured: it is for rows predicted by %s, which these are not",
            Decision.file(run.path),
            decision.predicted_as,
        )
        return None
    return decision, modes[0]


def show(report: Mapping[str, Any]) -> None:
    """Shows a report on the terminal."""
    splits = report["splits"]
    if "threshold" in report:
        table = _table("Answered", "Rows", "Accuracy\nof answers", "Accuracy\nof all")
        for split, measured in splits.items():
            table.add_row(split, *_answered_cells(measured["answered"]), measured["guarantee"])
        out.print(table)
        say_threshold(report)
    if "set_threshold" in report:
        table = _table("Right one\nin set", "Answers\nin a set", "Sets of\none", "Empty\nsets")
        for split, measured in splits.items():
            sets = measured["sets"]
            table.add_row(
                split,
                _percent(sets.get("coverage")),
                f"{sets['mean_size']:.2f}",
                _percent(sets["share_singleton"]),
                _percent(sets["share_empty"]),
                measured["guarantee"],
            )
        out.print(table)
        say_sets(report)
    if any("costs" in measured for measured in splits.values()):
        table = _table("Answered", "Cost of\na row", "95 % interval")
        for split, measured in splits.items():
            if "costs" in measured:
                costs, answered = measured["costs"], measured.get("answered", {}).get("share_answered", 1.0)
                interval = f"{costs['low']:.4g} – {costs['high']:.4g}"
                table.add_row(split, _percent(answered), f"{costs['mean']:.4g}", interval, measured["guarantee"])
        out.print(table)
    say_caveats(report)


def say_threshold(report: Mapping[str, Any]) -> None:
    """Says which rows are answered, and what is promised of them."""
    threshold = report["threshold"]
    measure = threshold["sureness"].replace("_", " ")
    sign, value = (">=", threshold["value"]) if measure == "confidence" else ("<=", -threshold["value"])
    rule = "every row" if abs(value) == float("inf") else f"rows of {measure} {sign} {value:.4g}"
    say(f"Answered: {rule}. {report['guarantee']}")


def say_sets(report: Mapping[str, Any]) -> None:
    """Says what is promised of the sets."""
    say(f"Sets by {report['set_threshold']['score']}. {report['set_guarantee']}")


def say_groups(decision: Decision) -> None:
    """Says which groups have thresholds of their own, and which go by the common ones."""
    if decision.group_column is None:
        return
    kinds = {"answers": (decision.threshold, decision.group_thresholds), "sets": (decision.sets, decision.group_sets)}
    for what, (common, own) in kinds.items():
        if common is None:
            continue
        lines = [f"{name} ({counted(decision.group_rows[name], 'row')}): {one.value:.4g}" for name, one in own.items()]
        rest = [f"{name} ({rows})" for name, rows in decision.group_rows.items() if name not in own]
        say(
            f"By {escape(decision.group_column)}, {what}: the same guarantee within "
            f"{escape('; '.join(lines)) if lines else 'no group'}."
        )
        if rest:
            say(
                f"The common threshold, with no guarantee of their own, since their rows do not suffice: "
                f"{escape(', '.join(rest))}; and groups that are new."
            )


def say_caveats(report: Mapping[str, Any]) -> None:
    """Says where the guarantee does not hold, or not exactly."""
    chosen_on = report["chosen_on"]
    if elsewhere := [split for split, measured in report["splits"].items() if measured["guarantee"] == NONE]:
        say(
            f"No guarantee for {escape(', '.join(elsewhere))}: it is for rows drawn as the validation rows are, and "
            "says nothing of rows of another kind."
        )
    if chosen_on["also_used_for"]:
        what = "The guarantee is" if report["promises"] else "What these rows measure is"
        say(
            f"{what} approximate: on the same validation rows {', '.join(chosen_on['also_used_for'])}, so "
            "that they may look a little better than new rows do. It is exact with labelled rows that decided nothing: "
            "--calibration_file."
        )


def _guarantee(split: str, decision: Decision) -> str:
    if decision.chosen_on.source != VALIDATION:
        return ALIKE
    holds = APPROXIMATE if decision.chosen_on.also_used_for else HOLDS
    return {VALIDATION: CHOSEN, IN_SCOPE: holds}.get(split, NONE)


def _table(*headings: str) -> Table:
    return numbers_table("Split", *headings, Column("Guarantee", no_wrap=True))


def _answered_cells(answers: Mapping[str, float]) -> tuple[str, ...]:
    count = f"{answers['answered']:.0f} of {answers['rows']:.0f}"
    if "accuracy" not in answers:
        return _percent(answers["share_answered"]), count, "–", "–"
    interval = f"\n[dim]{100 * answers['accuracy_low']:.1f} – {100 * answers['accuracy_high']:.1f}[/dim]"
    accuracy = _percent(answers["accuracy"]) + interval if answers["answered"] else "–"
    return _percent(answers["share_answered"]), count, accuracy, _percent(answers["accuracy_of_all"])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
