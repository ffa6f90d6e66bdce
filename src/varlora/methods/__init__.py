"""The methods, one file each, under one contract (`varlora.methods.method.Method`)."""

from collections.abc import Callable, Mapping

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
from varlora.methods.temperature import Temperature, cross_fitted, fit_temperature, with_temperatures
from varlora.methods.tfb import Tfb

METHODS: Mapping[str, Callable[..., Method]] = {
    "adamw": AdamW,
    "ivon": Ivon,
    "laplace": Laplace,
    "blob": Blob,
    "scalabl": Scalabl,
    "swag": Swag,
    "tfb": Tfb,
    "ema": Ema,
    "ensemble": Ensemble,
    "mc_dropout": McDropout,
    "temperature": Temperature,
}

__all__ = [
    "METHODS",
    "AdamW",
    "Blob",
    "Ema",
    "Ensemble",
    "Fit",
    "Ivon",
    "Job",
    "Laplace",
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
