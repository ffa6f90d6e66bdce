"""Posteriors over the trained tensors of a model, one kind a file, and how they are read out of a trained one.

A posterior maps checkpoint keys (`varlora.adapters`) to a mean and a variance (`Posterior`). `PointMass` knows every
entry exactly; `DiagonalGaussian` is q = N(m, diag v) with v = 1 / precision, for IVON precision = λ (h + δ).
"""

from collections.abc import Mapping
from typing import Any

from varlora.posterior.diagonal import DiagonalGaussian
from varlora.posterior.dropout_masks import DropoutMasks
from varlora.posterior.kinds import (
    LinearisableGaussian,
    NotAWeightSampleError,
    NotLinearisableError,
    PointMassError,
    Posterior,
    linearisable,
)
from varlora.posterior.kronecker import KroneckerGaussian
from varlora.posterior.low_rank import LowRankGaussian
from varlora.posterior.meta import PosteriorMeta
from varlora.posterior.mixture import Mixture
from varlora.posterior.point_mass import PointMass
from varlora.posterior.prediction_config import Criterion, Mode, PredictionConfig, Scope
from varlora.posterior.training import model_meta, point_mass_of, posterior_of

KINDS: Mapping[str, Any] = {
    kind.kind: kind for kind in (PointMass, DiagonalGaussian, KroneckerGaussian, LowRankGaussian, Mixture, DropoutMasks)
}
"""The classes by the name that files give them; each is a `Posterior`."""

__all__ = [
    "KINDS",
    "Criterion",
    "DiagonalGaussian",
    "DropoutMasks",
    "KroneckerGaussian",
    "LinearisableGaussian",
    "LowRankGaussian",
    "Mixture",
    "Mode",
    "NotAWeightSampleError",
    "NotLinearisableError",
    "PointMass",
    "PointMassError",
    "Posterior",
    "PosteriorMeta",
    "PredictionConfig",
    "Scope",
    "linearisable",
    "model_meta",
    "point_mass_of",
    "posterior_of",
]
