"""What `varlora temper` is asked."""

from __future__ import annotations

from varlora.cli.options.operation import add_options, add_source
from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora temper runs/arc --temperature 2 --output_dir runs/arc-warmer
  varlora temper runs/arc --temperature 0 --output_dir runs/arc-mean
"""


def parser() -> CommandParser:
    """The posterior and the temperature."""
    command = CommandParser(
        "temper",
        about=(
            "Scale a posterior's variance: above 1 it is warmer (more uncertain), below 1 colder; 0 leaves its mean. "
            "This is not the temperature of temperature scaling, which divides logits."
        ),
        examples=EXAMPLES,
        usage="SOURCE --temperature T --output_dir FOLDER [OPTIONS]",
    )
    add_source(command)
    command.option("temperature", "What multiplies every variance, at least 0.", type=float, required=True, metavar="T")
    add_options(command)
    return command
