"""What `varlora decide` is asked."""

from __future__ import annotations

from varlora.cli.options.finished import add_columns, add_run
from varlora.cli.options.selective import add_selective
from varlora.cli.parsing import CommandParser

RECALIBRATIONS = ("auto", "temperature", "venn_abers")
EXAMPLES = """
  varlora decide runs/arc --target_accuracy 0.95             answer what can be answered with 95 % right
  varlora decide runs/arc --coverage 0.9 --prediction_sets 0.9 --group_column subject
  varlora decide runs/spam --cost_wrong ham=10 spam=1 --cost_abstain 0.5
  varlora decide runs/arc --accuracy_bands high=0.95 medium=0.8 low
  varlora decide runs/arc                                    what was decided
  varlora decide runs/arc --reset
"""


def parser() -> CommandParser:
    """The run, and what is wanted of its answers."""
    command = CommandParser(
        "decide",
        about=(
            "Choose, on a run's validation rows, which rows it answers, sets of answers, and bands of confidence: "
            "with a guarantee, or by what a wrong answer costs. It is kept in the run's folder (decision.json), and "
            "whatever predicts with the run goes by it. Without options: say what was decided."
        ),
        examples=EXAMPLES,
        usage="RUN [OPTIONS]",
    )
    command.option(
        "samples",
        "Posterior draws that the rows are predicted with, 0 for the mean; otherwise as `varlora predict` would.",
        type=int,
    )
    add_selective(command)
    command.option(
        "group_column",
        "Column of the rows' file by whose values thresholds are chosen, each group's own where it has enough rows.",
        metavar="NAME",
    )
    command.option(
        "cost_wrong",
        "What a wrong answer costs: a number, or CLASS=COST for each class that is right then (*=COST: all others). "
        "The answer is that of least expected cost.",
        nargs="+",
        metavar="COST",
    )
    command.option(
        "cost_abstain",
        "What it costs not to answer, in the same words; left out, every row is answered.",
        nargs="+",
        metavar="COST",
    )
    command.option(
        "cost_file",
        'The same as a JSON file: {"wrong": ..., "abstain": ...}, each a number or {class: cost}, and wrong also '
        "{right class: {answer: cost}} or a matrix.",
    )
    command.option(
        "confidence_bands",
        "Name bands of confidence by their least: high=0.9 medium=0.6 low; the last takes what is left.",
        nargs="+",
        metavar="BAND",
    )
    command.option(
        "accuracy_bands",
        "Name bands by the accuracy that they guarantee: high=0.95 medium=0.8 low.",
        nargs="+",
        metavar="BAND",
    )
    command.option(
        "recalibrate",
        "Recalibrate the probabilities on half of the rows if that is better by more than noise: by a temperature "
        "(each group's own with --group_column), by Venn-Abers, or the better one (auto).",
        choices=RECALIBRATIONS,
    )
    add_columns(command)
    command.flag("reset", "Take back what was decided.")
    command.flag("overwrite", "Replace what was decided.")
    add_run(command)
    command.set_defaults(untuned=False, max_new_tokens=None)
    return command
