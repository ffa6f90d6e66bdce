"""`varlora distill`: one plain adapter that answers like the average over a run's draws."""

from __future__ import annotations

from argparse import Namespace

from rich.markup import escape

from varlora.cli.console import numbers_table, out, say
from varlora.cli.finished import read_folder
from varlora.cli.operation import check_output
from varlora.runs.distill import DISTILLED, Distillation, NoGainError, distill
from varlora.runs.soft_targets import SoftTargetOptions

HEADINGS = {
    "nll": ("NLL ↓", "{:.4f}", 1),
    "accuracy": ("Accuracy % ↑", "{:.1f}", 100),
    "ece_15": ("ECE % ↓", "{:.1f}", 100),
    "auroc_errors": ("AUROC err. % ↑", "{:.1f}", 100),
    "kl": ("KL ↓", "{:.4f}", 1),
}


def execute(arguments: Namespace) -> None:
    """Distils."""
    check_output(arguments.output_dir, [arguments.run], overwrite=arguments.overwrite)
    run = read_folder(arguments)
    options = SoftTargetOptions(
        learning_rates=tuple(arguments.learning_rates),
        num_train_epochs=arguments.num_train_epochs,
        batch_size=arguments.train_batch_size,
        kept=arguments.kept,
        seed=run.config.seed if arguments.seed is None else arguments.seed,
    )
    try:
        result = distill(
            run,
            arguments.output_dir,
            unlabeled_file=arguments.unlabeled_file,
            samples=arguments.samples,
            untuned=arguments.untuned,
            options=options,
            keep_without_gain=arguments.keep_without_gain,
            overwrite=arguments.overwrite,
            progress=not arguments.no_progress,
        )
    except NoGainError as error:
        _show(error.distillation)
        raise
    _show(result)
    name = escape(arguments.output_dir)
    say(f"[bold]{escape(result.sentence)}[/bold]")
    say(f"Written to [bold]{name}[/bold], with {DISTILLED}. On the test rows: [cyan]varlora eval {name}[/cyan]")


def _show(result: Distillation) -> None:
    """The ways to predict, beside each other, and how the adapter was chosen."""
    headings = (heading for heading, _, _ in HEADINGS.values())
    table = numbers_table(f"{result.rows} rows", *headings)
    for way, metrics in result.measured.items():
        shown = ((metrics.get(name), form, factor) for name, (_, form, factor) in HEADINGS.items())
        cells = ["" if value is None else form.format(factor * value) for value, form, factor in shown]
        table.add_row(way, *cells)
    out.print(table)
    fit = result.fit
    chosen = f"rate {fit.learning_rate:g}, epoch {fit.epoch}" if fit.epoch else "no epoch is closer than the mean"
    say(
        f"The average ({escape(result.teacher)}) matched on {fit.rows} rows; {chosen}, KL to it {fit.start:.4f} → "
        f"{fit.divergence:.4f} on {fit.kept} rows that were kept out."
    )
