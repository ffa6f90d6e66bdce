"""`varlora temper`: a posterior with its variance scaled."""

from __future__ import annotations

from argparse import Namespace

from varlora.cli.operation import check_output, write
from varlora.posterior import PointMass, ops
from varlora.runs.any_posterior import read_posterior


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
