"""`varlora decide`: which rows a run answers, and sets of answers, chosen on its validation rows and kept."""

from __future__ import annotations

from argparse import Namespace

from rich.markup import escape

from varlora.cli.console import out
from varlora.cli.finished import read_finished
from varlora.cli.selective import report_of, say_caveats, say_groups, say_sets, say_threshold, show, wanted_of
from varlora.io.words import counted
from varlora.runs.calibration import CALIBRATION, calibrate
from varlora.runs.data import load_new_rows, read_new_rows
from varlora.runs.decision import FILE, Decision, choose_decision
from varlora.runs.row_groups import groups_of, validation_records


def execute(arguments: Namespace) -> None:
    """Chooses and writes, says what was chosen, or takes it back."""
    wanted = wanted_of(arguments)
    if arguments.reset:
        _reset(arguments)
        return
    if wanted is None:
        _say_stored(arguments)
        return
    run, settings, config = read_finished(arguments, judged=False)
    file = groups = None
    if arguments.calibration_file is not None:
        records, split = read_new_rows(arguments.calibration_file, settings, labelled=True), CALIBRATION
        file = load_new_rows(records, run, settings, split=split, labelled=True)
    calibration = calibrate(run, settings, config, file=file, progress=not arguments.no_progress)
    if (column := arguments.group_column) is not None:
        if file is None:
            records, split = validation_records(settings)
        groups = groups_of(calibration.prediction.ids, records, split, column)
    decision = choose_decision(wanted, calibration, group_column=column, groups=groups)
    show(report_of(decision, {decision.chosen_on.source: calibration.prediction}, groups=groups))
    say_groups(decision)
    file_name = decision.save(run.path)
    out.print(
        f"Kept in [bold]{escape(str(file_name))}[/bold]; `varlora predict {escape(str(run.path))}` goes by it.",
        highlight=False,
        soft_wrap=True,
    )


def _say_stored(arguments: Namespace) -> None:
    decision = _stored(arguments)
    chosen_on, report = decision.chosen_on, report_of(decision, {})
    if decision.threshold is not None:
        say_threshold(report)
    if decision.sets is not None:
        say_sets(report)
    say_groups(decision)
    say_caveats(report)
    out.print(
        f"Chosen on {counted(chosen_on.rows, 'row')} of {escape(chosen_on.source)}, predicted by "
        f"{decision.predicted_as}.",
        highlight=False,
        soft_wrap=True,
    )


def _reset(arguments: Namespace) -> None:
    file = Decision.file(arguments.run)
    if not file.is_file():
        raise ValueError(f"{arguments.run} has no {FILE}; there is nothing to take back.")
    file.unlink()
    out.print(f"[bold]{escape(arguments.run)}[/bold] answers every row again.", highlight=False, soft_wrap=True)


def _stored(arguments: Namespace) -> Decision:
    decision = Decision.load(arguments.run)
    if decision is None:
        raise ValueError(
            f"nothing was decided for {arguments.run}. Say what is wanted: --coverage, --target_accuracy or "
            "--prediction_sets."
        )
    return decision
