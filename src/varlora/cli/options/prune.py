"""What `varlora prune` is asked."""

from __future__ import annotations

from varlora.cli.options.operation import add_options, add_source
from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora prune runs/arc --fraction 0.1 --output_dir runs/arc-pruned
  varlora eval runs/arc-pruned
"""


def parser() -> CommandParser:
    """The posterior, how much of it, and by what."""
    command = CommandParser(
        "prune",
        about="Set a posterior's least certain entries to zero, mean and variance both.",
        examples=EXAMPLES,
        usage="SOURCE --fraction F --output_dir FOLDER [OPTIONS]",
    )
    add_source(command)
    command.option("fraction", "Share of the entries, 0 to 1.", type=float, required=True, metavar="F")
    command.option(
        "by",
        "Which go first: the lowest |mean| / sd ('snr'), the largest variance, the lowest |mean|, or any.",
        choices=["snr", "variance", "magnitude", "random"],
        default="snr",
    )
    command.option("scope", "Rank over all tensors, or within each.", choices=["global", "tensor"], default="global")
    command.option("seed", "Of --by random; 0 otherwise.", type=int)
    add_options(command)
    return command
