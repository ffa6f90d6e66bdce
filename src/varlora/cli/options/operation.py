"""Options of commands on one posterior or several: which, and where the result goes."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser

SOURCES = "a run, a posterior folder, or a checkpoint-N folder of a Trainer with IVON"


def add_source(command: CommandParser) -> None:
    """The posterior that is read."""
    command.add_argument("source", metavar="SOURCE", help=f"{SOURCES[0].upper()}{SOURCES[1:]}.")


def add_options(command: CommandParser) -> None:
    """Where the result goes."""
    command.option("output_dir", "Folder for the new posterior.", required=True)
    command.flag("overwrite", "Replace that folder.")
