"""Variational LoRA: fine-tune a language model and keep a posterior over the adapter's weights.

Names are imported when they are first used, so that `import varlora` and `varlora --help` take no time.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from varlora.registry.lazy import lazily

if TYPE_CHECKING:
    from varlora import metrics
    from varlora.adapters import applied, load_into
    from varlora.ivon import IVON, set_prior_width
    from varlora.ivon.config import IVONConfig
    from varlora.ivon.noise import NoiseController
    from varlora.ivon.trainer import VariationalTrainer, VariationalTrainerMixin
    from varlora.ivon.trainer_checkpoint import posterior_from_checkpoint
    from varlora.ivon.variational_callback import VariationalCallback
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
    from varlora.posterior.folder import load_posterior, save_posterior
    from varlora.posterior.ops import common_prior, isotropic_prior, kl, merge, prune, snr, temper
    from varlora.prediction.generation import Generations, generate
    from varlora.prediction.linearised import predict_linearised
    from varlora.prediction.prediction import Prediction, predict
    from varlora.prediction.prediction_setup import apply_tuning, remove_tuning
    from varlora.readout.readout import AnswerTokens, ClassHead
    from varlora.tasks import answer_tokens
    from varlora.training.checkpoint_files import last_whole_checkpoint

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
    "posterior.folder": ("load_posterior", "save_posterior"),
    "training.checkpoint_files": ("last_whole_checkpoint",),
    "prediction.linearised": ("predict_linearised",),
    "prediction.generation": ("Generations", "generate"),
    "ivon.config": ("IVONConfig",),
    "ivon.noise": ("NoiseController",),
    "posterior.ops": ("common_prior", "isotropic_prior", "kl", "merge", "prune", "snr", "temper"),
    "ivon": ("IVON", "set_prior_width"),
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
    "prediction.prediction": ("Prediction", "predict"),
    "prediction.prediction_setup": ("apply_tuning", "remove_tuning"),
    "readout.readout": ("AnswerTokens", "ClassHead"),
    "tasks": ("answer_tokens",),
    "ivon.trainer_checkpoint": ("posterior_from_checkpoint",),
    "ivon.trainer": ("VariationalTrainer", "VariationalTrainerMixin"),
    "ivon.variational_callback": ("VariationalCallback",),
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
