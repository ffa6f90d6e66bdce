"""`varlora merge`: one posterior from several that were trained on different data."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import torch

from varlora.cli.operation import check_output, write
from varlora.posterior import DiagonalGaussian, PointMass, ops
from varlora.runs.any_posterior import read_posterior


def execute(arguments: Namespace) -> None:
    """Merges."""
    if len(arguments.sources) < 2:
        raise ValueError("merge needs two or more posteriors.")
    check_output(arguments.output_dir, arguments.sources, overwrite=arguments.overwrite)
    posteriors: list[DiagonalGaussian] = []
    for source in arguments.sources:
        q = read_posterior(source)
        if isinstance(q, PointMass):
            raise ValueError(f"{source} holds a point mass, which has no variance to weigh it by.")
        if not isinstance(q, DiagonalGaussian):
            raise ValueError(f"{source} is of kind {q.kind}; only diagonal Gaussians (ivon, blob, tfb) can be merged.")
        for former, name in zip(posteriors, arguments.sources, strict=False):
            if _are_equal(former, q):
                raise ValueError(
                    f"{name} and {source} hold the same posterior, whose data would count twice; merge posteriors that "
                    "were trained on different data."
                )
        posteriors.append(q)
    if arguments.prior_precision is not None:
        prior = ops.isotropic_prior(posteriors[0], arguments.prior_precision)
    else:
        prior = _common_prior(posteriors, arguments.sources)
    merged = ops.merge(posteriors, prior=prior, invalid=arguments.invalid)
    before, after = _median_deviation(posteriors[0]), _median_deviation(merged)
    write(
        merged,
        arguments.sources,
        arguments.output_dir,
        overwrite=arguments.overwrite,
        changed=(
            f"Merged {len(posteriors)} posteriors; the median standard deviation went from {before:.3g} (the first's) "
            f"to {after:.3g}."
        ),
    )


def _are_equal(first: DiagonalGaussian, second: DiagonalGaussian) -> bool:
    return all(
        these.keys() == those.keys() and all(torch.equal(these[key], those[key]) for key in these)
        for these, those in ((first.mean, second.mean), (first.precision, second.precision))
    )


def _common_prior(posteriors: Sequence[DiagonalGaussian], sources: Sequence[str]) -> DiagonalGaussian:
    try:
        return ops.common_prior(posteriors)
    except ValueError as error:
        named = ", ".join(f"{i} is {source}" for i, source in enumerate(sources, start=1))
        raise ValueError(f"{error} (Posterior {named}.)") from error


def _median_deviation(q: DiagonalGaussian) -> float:
    deviations = torch.cat([variance.flatten() for variance in q.variance.values()]).sqrt()
    return float(deviations[deviations > 0].median()) if bool((deviations > 0).any()) else 0.0
