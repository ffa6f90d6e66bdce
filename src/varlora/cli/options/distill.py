"""What `varlora distill` is asked."""

from __future__ import annotations

from varlora.cli.options.finished import add_run
from varlora.cli.parsing import CommandParser

RATES = (1e-4, 3e-4, 1e-3)
EXAMPLES = """
  varlora distill runs/arc --output_dir runs/arc-distilled
  varlora distill runs/sst2 --unlabeled_file reviews.jsonl --samples 16 --output_dir runs/sst2-distilled
  varlora eval runs/arc-distilled
"""


def parser() -> CommandParser:
    """The run, more rows, and how to fit."""
    command = CommandParser(
        "distill",
        about=(
            "Train one plain adapter, from the mean on, to answer in a single pass like the average over a run's "
            "draws: on the training rows, and on rows without labels where they are given. What is left of the gap is "
            "measured on the validation rows; where the mean with a temperature does as well there, that is said, and "
            "nothing is written."
        ),
        examples=EXAMPLES,
        usage="RUN --output_dir FOLDER [OPTIONS]",
    )
    command.option("output_dir", "Folder for the new run.", required=True)
    command.option("unlabeled_file", "More rows: JSONL, CSV or Parquet; labels in it are not looked at.")
    command.option("samples", "Draws of the average; what was tuned, or the run's own number otherwise.", type=int)
    command.option("learning_rates", "Rates of AdamW to try.", type=float, nargs="+", default=RATES)
    command.option("num_train_epochs", "Passes over the rows, of each rate; the best one counts.", type=int, default=10)
    command.option("train_batch_size", "Rows of a step.", type=int, default=8)
    command.option("kept", "Share of the rows on which rate and epoch are chosen.", type=float, default=0.2)
    command.option(
        "seed", "Of which rows those are, and of the order of the others; the run's own otherwise.", type=int
    )
    command.flag("untuned", "Match the posterior as training left it: leave aside what `varlora tune` chose.")
    command.flag("keep_without_gain", "Write the folder also where the mean with a temperature is as good.")
    add_run(command)
    command.flag("overwrite", "Replace that folder.")
    command.set_defaults(max_new_tokens=None)
    return command
