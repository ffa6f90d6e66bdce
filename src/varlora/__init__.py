"""Variational LoRA: fine-tune a language model and keep a posterior over the adapter's weights.

Names are imported when they are first used, so that `import varlora` and `varlora --help` take no time.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from varlora.lazy import lazily

if TYPE_CHECKING:
    from varlora import metrics
    from varlora.adapters import applied, load_into
    from varlora.checkpoint import load_posterior, save_posterior
    from varlora.checkpoint_files import last_whole_checkpoint
    from varlora.generation import Generations, generate
    from varlora.ivon_config import IVONConfig
    from varlora.linearised import predict_linearised
    from varlora.noise import NoiseController
    from varlora.ops import common_prior, isotropic_prior, kl, merge, prune, snr, temper
    from varlora.optim import IVON, set_prior_width
    from varlora.posterior import (
        DiagonalGaussian,
        DropoutMasks,
        KroneckerGaussian,
        LowRankGaussian,
        Mixture,
        PointMass,
        PredictionConfig,
        point_mass_of,
        posterior_of,
    )
    from varlora.prediction import Prediction, predict
    from varlora.prediction_setup import apply_tuning, remove_tuning
    from varlora.readout import AnswerTokens, ClassHead
    from varlora.tasks import answer_tokens
    from varlora.trainer_checkpoint import posterior_from_checkpoint
    from varlora.training import VariationalTrainer, VariationalTrainerMixin
    from varlora.variational_callback import VariationalCallback

    __version__: str

__all__ = [
    "IVON",
    "AnswerTokens",
    "ClassHead",
    "DiagonalGaussian",
    "DropoutMasks",
    "Generations",
    "IVONConfig",
    "KroneckerGaussian",
    "LowRankGaussian",
    "Mixture",
    "NoiseController",
    "PointMass",
    "Prediction",
    "PredictionConfig",
    "VariationalCallback",
    "VariationalTrainer",
    "VariationalTrainerMixin",
    "__version__",
    "answer_tokens",
    "applied",
    "apply_tuning",
    "common_prior",
    "generate",
    "isotropic_prior",
    "kl",
    "last_whole_checkpoint",
    "load_into",
    "load_posterior",
    "merge",
    "metrics",
    "point_mass_of",
    "posterior_from_checkpoint",
    "posterior_of",
    "predict",
    "predict_linearised",
    "prune",
    "remove_tuning",
    "save_posterior",
    "set_prior_width",
    "snr",
    "temper",
]

_MODULES = {
    "adapters": ("applied", "load_into"),
    "checkpoint": ("load_posterior", "save_posterior"),
    "checkpoint_files": ("last_whole_checkpoint",),
    "linearised": ("predict_linearised",),
    "generation": ("Generations", "generate"),
    "ivon_config": ("IVONConfig",),
    "noise": ("NoiseController",),
    "ops": ("common_prior", "isotropic_prior", "kl", "merge", "prune", "snr", "temper"),
    "optim": ("IVON", "set_prior_width"),
    "posterior": (
        "DiagonalGaussian",
        "DropoutMasks",
        "KroneckerGaussian",
        "LowRankGaussian",
        "Mixture",
        "PointMass",
        "PredictionConfig",
        "point_mass_of",
        "posterior_of",
    ),
    "prediction": ("Prediction", "predict"),
    "prediction_setup": ("apply_tuning", "remove_tuning"),
    "readout": ("AnswerTokens", "ClassHead"),
    "tasks": ("answer_tokens",),
    "trainer_checkpoint": ("posterior_from_checkpoint",),
    "training": ("VariationalTrainer", "VariationalTrainerMixin"),
    "variational_callback": ("VariationalCallback",),
}
_find = lazily("varlora", {name: f"varlora.{home}" for home, names in _MODULES.items() for name in names})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("varlora")
    if name == "metrics":
        return importlib.import_module("varlora.metrics")
    return _find(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
