"""The methods, one file each, under one contract (`varlora.methods.method.Method`).

A method is imported when it is looked up, so that `varlora methods` and `varlora train --help` do not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from varlora.lazy import lazily

if TYPE_CHECKING:
    from varlora.methods.adamw import AdamW
    from varlora.methods.blob import Blob
    from varlora.methods.ema import Ema
    from varlora.methods.ensemble import Ensemble
    from varlora.methods.ivon import Ivon
    from varlora.methods.laplace import Laplace
    from varlora.methods.mc_dropout import McDropout
    from varlora.methods.method import Fit, Job, Method, with_options
    from varlora.methods.scalabl import Scalabl
    from varlora.methods.swag import Swag
    from varlora.methods.temperature import Temperature, with_temperatures
    from varlora.methods.tfb import Tfb
    from varlora.metrics.temperature import cross_fitted, fit_temperature


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A method as `varlora methods` shows it; a test holds it to the class.

    Attributes:
        kind: the class, of the module of the method's name.
        summary: what the method gives.
        options: its options and their defaults.
    """

    kind: str
    summary: str
    options: Mapping[str, Any]


_ADAMW: Mapping[str, Any] = {"learning_rate": 5e-5, "weight_decay": 0.0, "label_smoothing": 0.0}
_MEAN_FIELD: Mapping[str, Any] = {
    "learning_rate": 1e-4,
    "kl_learning_rate": 0.01,
    "kl_reweighting": True,
    "prior_std": 0.2,
    "initial_std_bound": 0.05,
}

LISTED: Mapping[str, Listed] = {
    "adamw": Listed(
        kind="AdamW",
        summary="one point by AdamW (MLE; MAP with weight decay)",
        options=_ADAMW,
    ),
    "ivon": Listed(
        kind="Ivon",
        summary="a diagonal Gaussian by the variational optimizer IVON",
        options={
            "recipe": "auto",
            "learning_rate": None,
            "update": None,
            "ess": None,
            "hess_init": None,
            "beta1": None,
            "beta2": None,
            "weight_decay": None,
            "clip_radius": None,
            "prior": None,
            "prior_width": None,
            "held_out": None,
            "draws": 1,
        },
    ),
    "laplace": Listed(
        kind="Laplace",
        summary="AdamW, then a Gaussian by the curvature there (Laplace-LoRA)",
        options={
            **_ADAMW,
            "curvature": "kron",
            "fisher": "ggn",
            "prior_choice": "marglik",
            "per_tensor": False,
            "curvature_rank": 10,
            "curvature_rank_above": 1024,
        },
    ),
    "blob": Listed(
        kind="Blob",
        summary="a diagonal Gaussian over lora_A by backpropagation (BLoB)",
        options=_MEAN_FIELD,
    ),
    "scalabl": Listed(
        kind="Scalabl",
        summary="a Gaussian over r numbers per LoRA module (ScalaBL)",
        options=_MEAN_FIELD,
    ),
    "swag": Listed(
        kind="Swag",
        summary="a Gaussian through snapshots of AdamW's path (SWAG)",
        options={**_ADAMW, "snapshots": 10, "swag_start": 0.5, "swag_learning_rate": None},
    ),
    "tfb": Listed(
        kind="Tfb",
        summary="AdamW, then the largest noise its predictions bear, without training (TFB)",
        options={**_ADAMW, "tolerance": 0.003, "anchor_examples": 500, "draws": 10},
    ),
    "ema": Listed(
        kind="Ema",
        summary="one point: an exponential moving average of AdamW's path",
        options={**_ADAMW, "ema_decay": 0.99},
    ),
    "ensemble": Listed(
        kind="Ensemble",
        summary="several points by AdamW, each from its own seed (a deep ensemble of adapters)",
        options={**_ADAMW, "members": 5},
    ),
    "mc_dropout": Listed(
        kind="McDropout",
        summary="AdamW with LoRA dropout that stays on when predicting",
        options=_ADAMW,
    ),
    "temperature": Listed(
        kind="Temperature",
        summary="AdamW with one temperature on the logits, fitted on validation rows",
        options=_ADAMW,
    ),
}


class _Methods(Mapping[str, "Callable[..., Method]"]):
    """The classes by their methods' names."""

    def __getitem__(self, name: str) -> Callable[..., Method]:
        found: Callable[..., Method] = __getattr__(LISTED[name].kind)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(LISTED)

    def __len__(self) -> int:
        return len(LISTED)


METHODS: Mapping[str, Callable[..., Method]] = _Methods()

__all__ = [
    "LISTED",
    "METHODS",
    "AdamW",
    "Blob",
    "Ema",
    "Ensemble",
    "Fit",
    "Ivon",
    "Job",
    "Laplace",
    "Listed",
    "McDropout",
    "Method",
    "Scalabl",
    "Swag",
    "Temperature",
    "Tfb",
    "cross_fitted",
    "fit_temperature",
    "with_options",
    "with_temperatures",
]

_HOMES: Mapping[str, str] = {
    **{listed.kind: name for name, listed in LISTED.items()},
    **dict.fromkeys(("Fit", "Job", "Method", "with_options"), "method"),
    "with_temperatures": "temperature",
}
_FITS = dict.fromkeys(("cross_fitted", "fit_temperature"), "varlora.metrics.temperature")
__getattr__ = lazily("varlora.methods", {name: f"varlora.methods.{home}" for name, home in _HOMES.items()} | _FITS)
