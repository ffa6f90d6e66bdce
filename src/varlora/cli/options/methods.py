"""What `varlora methods` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser


def parser() -> CommandParser:
    """Which method."""
    command = CommandParser(
        "methods",
        about="List the ways to train, with their options and defaults; those of installed packages, too.",
        examples="  varlora methods\n  varlora methods swag\n  varlora train --method ivon --ess 1e6 ...",
        usage="[NAME]",
    )
    command.add_argument(
        "name", nargs="?", metavar="NAME", help="Of one method: what it costs, and its options in full."
    )
    return command
