"""`varlora temper`: a posterior with its variance scaled."""

from __future__ import annotations

from argparse import Namespace

from varlora import ops
from varlora.cli.operation import SOURCES, add_options, check_output, read_posterior, write
from varlora.cli.parsing import CommandParser
from varlora.posterior import PointMass

EXAMPLES = """
  varlora temper runs/arc --temperature 2 --output_dir runs/arc-warmer
  varlora temper runs/arc --temperature 0 --output_dir runs/arc-mean
"""


def parser() -> CommandParser:
    """The posterior and the temperature."""
    made = CommandParser(
        "temper",
        about=(
            "Scale a posterior's variance: above 1 it is warmer (more uncertain), below 1 colder; 0 leaves its mean. "
            "This is not the temperature of temperature scaling, which divides logits."
        ),
        examples=EXAMPLES,
        usage="SOURCE --temperature T --output_dir FOLDER [OPTIONS]",
    )
    made.add_argument("source", metavar="SOURCE", help=f"{SOURCES[0].upper()}{SOURCES[1:]}.")
    made.option("temperature", "What multiplies every variance, at least 0.", type=float, required=True, metavar="T")
    add_options(made)
    return made


def execute(arguments: Namespace) -> None:
    """Tempers."""
    check_output(arguments.output_dir, [arguments.source], overwrite=arguments.overwrite)
    q = read_posterior(arguments.source)
    if isinstance(q, PointMass):
        raise ValueError(f"{arguments.source} holds a point mass, which has no variance to temper.")
    tau = arguments.temperature
    tempered = ops.temper(q, tau)
    changed = f"Every variance × {tau:g}, so every standard deviation × {tau**0.5:.3g}."
    if tau == 0:
        changed = "Only the mean is left: a point mass, which is not sampled."
    write(tempered, [arguments.source], arguments.output_dir, overwrite=arguments.overwrite, changed=changed)
