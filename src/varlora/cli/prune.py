"""`varlora prune`: a posterior without its least certain entries."""

from __future__ import annotations

from argparse import Namespace

from varlora import ops
from varlora.cli.operation import SOURCES, add_options, check_output, read_posterior, write
from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora prune runs/arc --fraction 0.1 --output_dir runs/arc-pruned
  varlora eval runs/arc-pruned
"""


def parser() -> CommandParser:
    """The posterior, how much of it, and by what."""
    made = CommandParser(
        "prune",
        about="Set a posterior's least certain entries to zero, mean and variance both.",
        examples=EXAMPLES,
        usage="SOURCE --fraction F --output_dir FOLDER [OPTIONS]",
    )
    made.add_argument("source", metavar="SOURCE", help=f"{SOURCES[0].upper()}{SOURCES[1:]}.")
    made.option("fraction", "Share of the entries, 0 to 1.", type=float, required=True, metavar="F")
    made.option(
        "by",
        "Which go first: the lowest |mean| / sd ('snr'), the largest variance, the lowest |mean|, or any.",
        choices=["snr", "variance", "magnitude", "random"],
        default="snr",
    )
    made.option("scope", "Rank over all tensors, or within each.", choices=["global", "tensor"], default="global")
    made.option("seed", "Of --by random; 0 otherwise.", type=int)
    add_options(made)
    return made


def execute(arguments: Namespace) -> None:
    """Prunes."""
    if arguments.seed is not None and arguments.by != "random":
        raise ValueError(f"--seed has no effect with --by {arguments.by}; leave it out, or prune with --by random.")
    check_output(arguments.output_dir, [arguments.source], overwrite=arguments.overwrite)
    q = read_posterior(arguments.source)
    pruned = ops.prune(q, arguments.fraction, by=arguments.by, scope=arguments.scope, seed=arguments.seed or 0)
    how = "at random" if arguments.by == "random" else f"by {arguments.by}"
    entries = sum(mean.numel() for mean in q.mean.values())
    write(
        pruned,
        [arguments.source],
        arguments.output_dir,
        overwrite=arguments.overwrite,
        changed=f"Pruned {pruned.meta.history[-1]['entries']:,} of {entries:,} entries {how}.",
    )
