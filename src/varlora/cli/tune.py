"""`varlora tune`: how to predict with a run, chosen on its validation rows."""

from __future__ import annotations

from argparse import Namespace

from rich.markup import escape
from rich.table import Column, Table

from varlora.cli.console import numbers_table, out, say
from varlora.cli.finished import read_folder, read_foreign_rows
from varlora.metrics import WORTHWHILE
from varlora.runs.data import load_new_rows
from varlora.runs.space import Grid
from varlora.runs.tune import TABLE, Tuning, reset, tune
from varlora.runs.tuning import Candidate

STAGES = {"scale": "τ and T", "draws": "Draws", "pruning": "Pruning"}


def execute(arguments: Namespace) -> None:
    """Chooses and writes, or takes back."""
    name = escape(arguments.run)
    if arguments.reset:
        reset(arguments.run)
        say(f"[bold]{name}[/bold] predicts as trained again.")
        return
    records = read_foreign_rows(arguments, arguments.validation_file, "validation_file", labelled=True)
    run, rows = read_folder(arguments, records), None
    if (file := arguments.validation_file) is not None:
        columns = arguments.dataset_columns
        rows = load_new_rows(records or file, run, split="validation", labelled=True, columns=columns)
    target = arguments.output_dir
    grid = Grid(
        temperatures=arguments.temperatures,
        samples=arguments.samples,
        fractions=arguments.fractions,
        by=arguments.by,
        logit_temperature=not arguments.no_logit_temperature,
        apply_pruning=arguments.prune,
        standard_errors=arguments.standard_errors,
    )
    tuning = tune(
        run,
        grid,
        split=arguments.split,
        rows=rows,
        output_dir=target,
        overwrite=arguments.overwrite,
        progress=not arguments.no_progress,
    )
    out.print(_table(tuning))
    for note in tuning.notes:
        say(note)
    say(f"[bold]{escape(tuning.sentence)}[/bold]")
    if target is not None:
        name = escape(target)
    _free(tuning, name)
    if tuning.tuned is None:
        where = f"{name}/posterior.json" if target is not None else "posterior.json"
        say(f"{where} says nothing of tuning; what was tried is in {TABLE}.")
        return
    say(
        f"Written to {name}/posterior.json; what was tried, to {TABLE}. metrics.json was measured before. On the test "
        f"rows: [cyan]varlora eval {name}[/cyan]"
    )


def _table(tuning: Tuning) -> Table:
    difference = f"Difference, {tuning.rows} rows"
    table = numbers_table("", "τ", "Draws", "T", "Pruned", "NLL ↓", difference, Column(""))
    candidates = tuning.choice.candidates
    for number, candidate in enumerate(candidates):
        first = number == 0 or candidates[number - 1].stage != candidate.stage
        last = number + 1 == len(candidates) or candidates[number + 1].stage != candidate.stage
        cells = _cells(candidate)
        style = "bold" if candidate.chosen else None
        table.add_row(STAGES[candidate.stage] if first else "", *cells, style=style, end_section=last)
    return table


def _cells(candidate: Candidate) -> tuple[str, ...]:
    config = candidate.config
    fitted = " fitted" if candidate.fitted else ""
    marks = [word for word, holds in (("so far", candidate.default), ("chosen", candidate.chosen)) if holds]
    return (
        "mean" if config.mode == "mean" else f"{config.temperature:g}",
        str(config.samples) if config.mode == "samples" else "",
        f"{config.logit_temperature:.3g}{fitted}",
        f"{100 * config.prune:g} %" if config.prune else "",
        f"{candidate.nll:.4f}",
        "" if candidate.default else f"{candidate.difference:+.4f} ± {candidate.standard_error:.4f}",
        ", ".join(marks),
    )


def _free(tuning: Tuning, name: str) -> None:
    """What costs nothing: fewer draws, and a smaller posterior."""
    choice = tuning.choice
    nothing = f"less than {WORTHWHILE:g} nat of NLL ({tuning.rows} rows)"
    samples = choice.chosen.config.samples
    if choice.fewest_samples is not None and samples is not None and choice.fewest_samples < samples:
        say(
            f"{choice.fewest_samples} draws instead of {samples} cost {nothing}: "
            f"[cyan]varlora predict {name} --samples {choice.fewest_samples} ...[/cyan]"
        )
    if choice.free_fraction is None or (tuning.tuned is not None and tuning.tuned.prune > 0):
        return
    if choice.free_fraction > 0:
        command = f"varlora prune {name} --fraction {choice.free_fraction:g} --by {tuning.by} --output_dir ..."
        say(
            f"{100 * choice.free_fraction:g} % can be pruned by {tuning.by} at a cost of {nothing}: "
            f"[cyan]{command}[/cyan]"
        )
    else:
        smallest = next(tried.config.prune for tried in choice.candidates if tried.config.prune > 0)
        say(f"Pruning {100 * smallest:g} % by {tuning.by} is not shown to cost {nothing}.")
