"""What `varlora decide` is asked."""

from __future__ import annotations

from varlora.cli.options.finished import add_run
from varlora.cli.options.selective import add_selective
from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora decide runs/arc --target_accuracy 0.95             answer what can be answered with 95 % right
  varlora decide runs/arc --coverage 0.9 --prediction_sets 0.9
  varlora decide runs/arc --coverage 0.9 --group_column subject
  varlora decide runs/arc                                    what was decided
  varlora decide runs/arc --reset
"""


def parser() -> CommandParser:
    """The run, and what is wanted of its answers."""
    made = CommandParser(
        "decide",
        about=(
            "Choose, on a run's validation rows, which rows it answers, and sets of answers, with a guarantee; it is "
            "kept in the run's folder (decision.json), and whatever predicts with the run goes by it. Without options: "
            "say what was decided."
        ),
        examples=EXAMPLES,
        usage="RUN [OPTIONS]",
    )
    made.option(
        "samples",
        "Posterior draws that the rows are predicted with, 0 for the mean; otherwise as `varlora predict` would.",
        type=int,
    )
    add_selective(made)
    made.option(
        "group_column",
        "Column of the rows' file by whose values thresholds are chosen, each group's own where it has enough rows.",
        metavar="NAME",
    )
    made.flag("reset", "Take back what was decided.")
    add_run(made)
    made.set_defaults(untuned=False, max_new_tokens=None)
    return made
