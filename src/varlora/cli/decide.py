"""`varlora decide`: what to do with a run's answers, chosen on its validation rows and kept in its folder."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from varlora.cli.console import numbers_table, out, say
from varlora.cli.finished import read_finished, read_foreign_rows
from varlora.cli.selective import (
    calibrate_by_options,
    report_of,
    say_caveats,
    say_groups,
    say_sets,
    say_threshold,
    show,
    wanted_of,
)
from varlora.io.files import read_json
from varlora.io.words import counted
from varlora.metrics.costs import OTHERS, Costs
from varlora.metrics.recalibration import Way
from varlora.runs.calibration import CALIBRATION
from varlora.runs.choose_decision import WantedBands, choose_decision
from varlora.runs.data import read_new_rows
from varlora.runs.decision import FILE, Decision
from varlora.runs.row_groups import groups_of, own_records
from varlora.tasks.task import VALIDATION


def execute(arguments: Namespace) -> None:
    """Chooses and writes, says what was chosen, or takes it back."""
    others = ("cost_wrong", "cost_file", "confidence_bands", "accuracy_bands")
    wanted = wanted_of(arguments, more=any(getattr(arguments, name) is not None for name in others))
    if arguments.reset:
        _reset(arguments)
        return
    if wanted is None:
        if arguments.recalibrate is not None or arguments.cost_abstain is not None:
            raise ValueError(
                "say what is to be decided: --coverage, --target_accuracy, --cost_wrong, --prediction_sets, "
                "--confidence_bands or --accuracy_bands."
            )
        _say_stored(arguments)
        return
    wanted = dataclasses.replace(wanted, bands=_bands(arguments), recalibrate=_ways(arguments))
    Decision.check_can_be_kept(arguments.run, overwrite=arguments.overwrite)
    own = read_foreign_rows(arguments, arguments.calibration_file, "calibration_file", labelled=True)
    run, settings, config = read_finished(arguments, own, judged=False)
    records = own
    if records is None and (file := arguments.calibration_file) is not None:
        records = read_new_rows(file, settings, labelled=True, columns=arguments.dataset_columns)
    calibration = calibrate_by_options(arguments, run, config, reported=["test"], records=records)
    wanted = dataclasses.replace(wanted, costs=_costs(arguments, calibration.prediction.classes))
    groups = None
    if (column := arguments.group_column) is not None:
        records, split = (records, CALIBRATION) if records is not None else own_records(settings, VALIDATION)
        groups = groups_of(calibration.prediction.ids, records, split, column)
    decision = choose_decision(wanted, calibration, group_column=column, groups=groups)
    if decision.recalibration_said or (decision.threshold is None and decision.sets is None):
        _say(decision)
    else:
        source = decision.chosen_on.source
        of_rows = None if groups is None else {source: groups}
        show(report_of(decision, {source: calibration.prediction}, groups=of_rows))
        _say_more(decision)
    kept = decision.save(run.path, overwrite=arguments.overwrite)
    say(f"Kept in [bold]{escape(str(kept))}[/bold]; `varlora predict {escape(str(run.path))}` goes by it.")


def _say_stored(arguments: Namespace) -> None:
    decision = Decision.load(arguments.run)
    if decision is None:
        raise ValueError(
            f"nothing was decided for {arguments.run}. Say what is wanted: --coverage, --target_accuracy, "
            "--cost_wrong, --prediction_sets, --confidence_bands or --accuracy_bands."
        )
    _say(decision)


def _say(decision: Decision) -> None:
    """All of a decision but what came of it."""
    chosen_on, report = decision.chosen_on, report_of(decision, {})
    if decision.threshold is not None:
        say_threshold(report)
    if decision.sets is not None:
        say_sets(report)
    _say_more(decision)
    say_caveats(report)
    say(
        f"Chosen on {counted(chosen_on.rows, 'row')} of {escape(chosen_on.source)}, predicted by "
        f"{decision.predicted_as}."
    )


def _say_more(decision: Decision) -> None:
    """What only `varlora decide` is asked: groups, costs, bands, other probabilities."""
    say_groups(decision)
    if decision.costs is not None:
        table = numbers_table("Cost of a row", "Answered", "Expected", "Measured", "95 % interval")
        for rule in decision.cost_of_rules:
            share, interval = f"{100 * rule.share_answered:.1f} %", f"{rule.low:.4g} – {rule.high:.4g}"
            table.add_row(rule.rule, share, f"{rule.expected:.4g}", f"{rule.measured:.4g}", interval)
        out.print(table)
        say(
            f"The answer of least expected cost, which need not be the likeliest; nothing was chosen on the "
            f"{counted(decision.chosen_on.rows, 'row')}, so that the measured costs are those of new rows like them."
        )
    if decision.bands:
        least = f"Least {decision.by}".replace("_", " ")
        table = numbers_table("Band", least, "Rows", "Right", "95 % interval", "Guaranteed")
        for band in decision.bands:
            low, high = band.interval
            right = (f"{100 * band.accuracy:.1f} %", f"{100 * low:.1f} – {100 * high:.1f}") if band.rows else ("–", "–")
            promised = "–" if band.wanted is None else f"{100 * band.wanted:.4g} %" if band.rows else "no rows can"
            table.add_row(band.name, _cut(band.cut), str(band.rows), *right, promised)
        out.print(table)
        if any(band.wanted is not None for band in decision.bands):
            say(
                f"For {100 * (1 - decision.delta):.4g} % of the draws of such {decision.chosen_on.rows} rows, the "
                "answers to new rows in every band are right in at least its guaranteed share."
            )
    if decision.recalibration_said:
        say(f"{decision.recalibration_said} All else was chosen on {decision.chosen_on.rows} other rows.")


def _reset(arguments: Namespace) -> None:
    file = Decision.file(arguments.run)
    if not file.is_file():
        raise ValueError(f"{arguments.run} has no {FILE}; there is nothing to take back.")
    file.unlink()
    say(f"[bold]{escape(arguments.run)}[/bold] answers every row again.")


def _costs(arguments: Namespace, classes: Sequence[str]) -> Costs | None:
    """What is said of costs, on the command line or in a file."""
    wrong, abstain = arguments.cost_wrong, arguments.cost_abstain
    if arguments.cost_file is not None:
        if wrong is not None or abstain is not None:
            raise ValueError("give --cost_file, or --cost_wrong and --cost_abstain, not both.")
        held = read_json(arguments.cost_file, dict[str, Any], instead='Write {"wrong": ..., "abstain": ...}.')
        if "wrong" not in held or set(held) - {"wrong", "abstain"}:
            raise ValueError(f'{arguments.cost_file} holds {sorted(held)}; write {{"wrong": ..., "abstain": ...}}.')
        try:
            return Costs.of(classes, wrong=held["wrong"], abstain=held.get("abstain"))
        except TypeError as error:
            raise ValueError(
                f'{arguments.cost_file}: "wrong" is {held["wrong"]!r}; give a number, costs by class, or a matrix.'
            ) from error
    if wrong is None:
        if abstain is not None:
            raise ValueError("--cost_abstain says what it costs not to answer; give --cost_wrong, too.")
        return None
    of_abstaining = None if abstain is None else _cost("cost_abstain", abstain)
    return Costs.of(classes, wrong=_cost("cost_wrong", wrong), abstain=of_abstaining)


def _cost(option: str, words: Sequence[str]) -> float | dict[str, float]:
    """A number, or numbers by class; a bare number beside them is that of all others."""
    named = dict(_named(option, word) if "=" in word else (OTHERS, _number(option, word)) for word in words)
    if len(named) < len(words):
        raise ValueError(f"--{option} names a class twice: {' '.join(words)}.")
    return named[OTHERS] if list(named) == [OTHERS] else named


def _bands(arguments: Namespace) -> WantedBands | None:
    given = {name: getattr(arguments, name) for name in ("confidence_bands", "accuracy_bands")}
    given = {name: words for name, words in given.items() if words is not None}
    if not given:
        return None
    if len(given) > 1:
        raise ValueError("give --confidence_bands or --accuracy_bands, not both.")
    ((option, (*upper, last)),) = given.items()
    if "=" in last or any("=" not in word for word in upper) or not upper:
        raise ValueError(
            f"--{option} is {' '.join((*upper, last))}; write NAME=NUMBER for each band but the last, and the last's "
            "name alone: high=0.9 medium=0.6 low."
        )
    pairs = [_named(option, word) for word in upper]
    names, numbers = (*(name for name, _ in pairs), last), tuple(number for _, number in pairs)
    if option == "accuracy_bands":
        return WantedBands(names=names, accuracies=numbers)
    if arguments.sureness not in (None, "confidence"):
        numbers = tuple(-number for number in numbers)  # sureness is minus the entropy, or the mutual information
    return WantedBands(names=names, cuts=numbers)


def _ways(arguments: Namespace) -> tuple[Way, ...]:
    by_temperature: tuple[Way, ...] = ("temperature",)
    if arguments.group_column is not None:
        by_temperature = ("temperature", "group_temperature")
    ways: dict[str | None, tuple[Way, ...]] = {
        None: (),
        "temperature": by_temperature,
        "venn_abers": ("venn_abers",),
        "auto": (*by_temperature, "venn_abers"),
    }
    return ways[arguments.recalibrate]


def _named(option: str, word: str) -> tuple[str, float]:
    name, _, number = word.rpartition("=")
    return name, _number(option, number)


def _number(option: str, word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"--{option}: {word!r} is no number.") from error


def _cut(cut: float) -> str:
    return "–" if abs(cut) == float("inf") else f"{abs(cut):.4g}"
