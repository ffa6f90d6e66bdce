"""What `varlora eval` is asked."""

from __future__ import annotations

from varlora.cli.options.finished import add_options
from varlora.cli.options.selective import add_selective
from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora eval runs/arc                                      the run's own splits again
  varlora eval runs/arc --test_file other.jsonl --samples 32
  varlora eval runs/arc --split test --output_file arc.json
  varlora eval runs/arc --linearised                         ... and by the linearised model, for few classes
  varlora eval runs/arc --coverage 0.9                       answer the surest 90 %: the threshold, and what comes of it
"""
FIRST = (
    "test_file split samples coverage target_accuracy prediction_sets output_file untuned model_name_or_path overwrite"
)


def parser() -> CommandParser:
    """The run, the rows, and where to write."""
    command = CommandParser(
        "eval",
        about=(
            "Measure a finished run at the posterior's mean and averaged over its draws, with 95 % bootstrap "
            "intervals over the rows. Without options it repeats the run's own evaluation exactly, unless the run was "
            "tuned: then it predicts as `varlora tune` chose."
        ),
        examples=EXAMPLES,
        usage="RUN [OPTIONS]",
        first=FIRST,
    )
    command.option("test_file", "File of labelled rows, JSONL, CSV or Parquet; the run's own splits otherwise.")
    command.option(
        "split", "Which of the run's splits; all but the training rows otherwise.", nargs="+", metavar="NAME"
    )
    command.flag(
        "linearised",
        "Measure the linearised model's predictions, too, as of a Laplace run: a backward pass for each class, and the "
        "mean's answers.",
    )
    command.option("resamples", "Bootstrap resamples; 0 for no intervals.", type=int, default=1000)
    command.option("output_file", "JSON file to write: metrics as in the run's metrics.json, and their intervals.")
    add_selective(command)
    add_options(command)
    return command
