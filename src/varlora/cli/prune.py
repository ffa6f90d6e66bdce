"""`varlora prune`: a posterior without its least certain entries."""

from __future__ import annotations

from argparse import Namespace

from varlora.cli.operation import check_output, write
from varlora.posterior import ops
from varlora.runs.any_posterior import read_posterior


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
