"""Options that `prune`, `temper` and `merge` share: where the result goes."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser

SOURCES = "a run, a posterior folder, or a checkpoint-N folder of a Trainer with IVON"


def add_options(made: CommandParser) -> None:
    """Where the result goes."""
    made.option("output_dir", "Folder for the new posterior.", required=True, metavar="FOLDER")
    made.flag("overwrite", "Replace that folder.")
