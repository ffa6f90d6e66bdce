"""What `varlora export` is asked."""

from __future__ import annotations

from varlora.cli.options.operation import add_source
from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora export runs/arc --samples 8 --output_dir exports/arc
  varlora export runs/arc --samples 0 --output_dir exports/arc-mean
  varlora export runs/arc --merged --output_dir exports/arc-merged
"""


def parser() -> CommandParser:
    """The posterior, how many draws of it, and where to."""
    command = CommandParser(
        "export",
        about=(
            "Write a posterior as plain PEFT adapters, one for each draw, which vLLM, SGLang or PEFT load without "
            "varlora: the draws that `varlora predict` averages, each named by a hash of its weights. README.md in the "
            "folder has the commands that serve them, export.json what a client needs to average their answers. With "
            "--merged: a run's mean merged into the base model, one ordinary model folder."
        ),
        examples=EXAMPLES,
        usage="SOURCE --output_dir FOLDER [OPTIONS]",
    )
    add_source(command)
    command.option("output_dir", "Folder for the adapters.", required=True)
    command.option(
        "samples",
        "Draws, an adapter each; 0 is the mean alone. Otherwise what was tuned, or the run's own number where draws "
        "were shown to help.",
        type=int,
        metavar="K",
    )
    command.option("seed", "Decides the draws; the run's own otherwise.", type=int)
    command.flag("untuned", "Draw from the posterior as training left it: leave aside what `varlora tune` chose.")
    command.option("name", "What the adapters' names begin with; the output folder's name otherwise.")
    command.flag("merged", "Write the mean, merged into the base model, and no adapter.")
    command.option(
        "quantization",
        "With --merged: 'none' loads the base model of a quantized run in full precision.",
        choices=["none"],
    )
    command.option("model_name_or_path", "Where the base model is, if not where it was in training.")
    command.flag("overwrite", "Replace an export in that folder.")
    return command
