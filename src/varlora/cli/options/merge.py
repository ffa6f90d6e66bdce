"""What `varlora merge` is asked."""

from __future__ import annotations

from varlora.cli.options.operation import SOURCES, add_options
from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora merge runs/part1 runs/part2 --output_dir runs/whole
  varlora merge runs/part1 runs/part2 --prior_precision 25 --output_dir runs/whole
"""


def parser() -> CommandParser:
    """The posteriors and their prior."""
    command = CommandParser(
        "merge",
        about=(
            "Multiply posteriors that were trained on different data from one prior, which is divided out once "
            "for each but one. It means something where they describe the same weights: adapters trained from the "
            "same initialisation (--seed)."
        ),
        examples=EXAMPLES,
        usage="SOURCE SOURCE ... --output_dir FOLDER [OPTIONS]",
    )
    command.add_argument("sources", metavar="SOURCE", nargs="+", help=f"Each {SOURCES}.")
    command.option(
        "prior_precision",
        "The prior's precision, one number for all entries; what the posteriors were trained with otherwise.",
        type=float,
        metavar="P",
    )
    command.option(
        "invalid",
        "What to do where the product is no Gaussian: refuse, or take the prior there.",
        choices=["raise", "prior"],
        default="raise",
    )
    add_options(command)
    return command
