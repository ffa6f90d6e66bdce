"""`varlora merge`: one posterior from several that were trained on different data."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence

import torch

from varlora import ops
from varlora.cli.operation import check_output, read_posterior, write
from varlora.posterior import DiagonalGaussian, PointMass


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
        posteriors.append(q)
    precision = arguments.prior_precision
    if precision is None:
        precision = _common_precision(posteriors, arguments.sources)
    merged = ops.merge(posteriors, prior=ops.isotropic_prior(posteriors[0], precision), invalid=arguments.invalid)
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


def _common_precision(posteriors: Sequence[DiagonalGaussian], sources: Sequence[str]) -> Mapping[str, float]:
    first = posteriors[0].meta.prior_precision
    for q, source in zip(posteriors, sources, strict=True):
        trained = {key for key, variance in q.variance.items() if bool((variance > 0).any())}
        if q.meta.prior_precision is None or trained - q.meta.prior_precision.keys():
            raise ValueError(
                f"{source} has no prior around zero that could be divided out (by default the prior is around where "
                "training began). Train with --prior fixed, one --ess and one --weight_decay, or say with "
                "--prior_precision which prior to divide out."
            )
        if q.meta.prior_precision != first:
            raise ValueError(
                f"{source} and {sources[0]} were trained with different priors (an adaptive prior is each run's own). "
                "Train both with --prior fixed, one --ess and one --weight_decay, or say with --prior_precision which "
                "prior to divide out."
            )
    assert first is not None
    if not all(precision > 0 for precision in first.values()):
        raise ValueError(
            f"{sources[0]} was trained with a flat prior (weight_decay is 0), which is no distribution. Say which "
            "prior to divide out with --prior_precision; a tiny one, 1e-9, comes to nearly none."
        )
    return first


def _median_deviation(q: DiagonalGaussian) -> float:
    deviations = torch.cat([variance.flatten() for variance in q.variance.values()]).sqrt()
    return float(deviations[deviations > 0].median()) if bool((deviations > 0).any()) else 0.0
