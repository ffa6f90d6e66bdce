"""What `varlora tune` is asked."""

from __future__ import annotations

from varlora.cli.options.finished import add_columns, add_run
from varlora.cli.parsing import CommandParser

TEMPERATURES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
DRAWS = (2, 4, 8, 16, 32)
FRACTIONS = (0.1, 0.2, 0.3, 0.5, 0.7)
EXAMPLES = """
  varlora tune runs/ivon
  varlora eval runs/ivon                                     as it was tuned
  varlora tune runs/ivon --samples 4 10 --fractions 0        fewer passes: two numbers of draws, no pruning
  varlora tune runs/ivon --reset
"""


def parser() -> CommandParser:
    """The run, and what to try."""
    command = CommandParser(
        "tune",
        about=(
            "Choose how to predict with a finished run, on its validation rows: the posterior's temperature, the "
            "temperature of the logits, the number of draws, and what can be pruned for nothing. A setting is left "
            "only for one whose NLL is lower by more than a standard error of the paired difference. The choice goes "
            "into posterior.json, and `eval` and `predict` use it; the weights are not touched."
        ),
        examples=EXAMPLES,
        usage="RUN [OPTIONS]",
    )
    command.option(
        "temperatures",
        "Posterior temperatures to try besides the run's own: 0 is the mean, above 1 warmer.",
        type=float,
        nargs="+",
        default=TEMPERATURES,
    )
    command.option("samples", "Numbers of draws to try besides the run's own.", type=int, nargs="+", default=DRAWS)
    command.option("fractions", "Fractions to prune; 0 for none.", type=float, nargs="+", default=FRACTIONS)
    command.option(
        "by",
        "Which go first; 'snr' where there is a variance, else 'magnitude'.",
        choices=["snr", "variance", "magnitude"],
    )
    command.flag("prune", "Predict without what can be pruned for nothing, too; otherwise it is only said.")
    command.flag("no_logit_temperature", "Do not divide the logits.")
    command.option(
        "standard_errors",
        "How many standard errors of the paired difference a gain must exceed; left out: two on 50 rows or fewer, one "
        "on many, and more the more ways are tried.",
        type=float,
    )
    command.option("split", "The rows; none but the validation rows may be chosen on.", default="validation")
    command.option("validation_file", "File of labelled rows to choose on, in place of the run's validation rows.")
    add_columns(command)
    command.flag("reset", "Take back what was tuned.")
    command.option(
        "output_dir",
        "New folder for the posterior with what was chosen, for a Trainer's checkpoint or a plain adapter, into which "
        "nothing is written.",
    )
    command.flag("overwrite", "Replace that folder, or what was tuned in the run.")
    add_run(command)
    command.set_defaults(max_new_tokens=None)
    return command
