"""What `varlora methods` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser


def parser() -> CommandParser:
    """No options."""
    return CommandParser(
        "methods",
        about="List the ways to train, with their options and defaults.",
        examples="  varlora train --method ivon --ess 1e6 ...",
    )
