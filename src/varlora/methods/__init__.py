"""The methods, one file each, under one contract (`varlora.methods.method.Method`)."""

from collections.abc import Callable, Mapping

from varlora.methods.adamw import AdamW
from varlora.methods.ivon import Ivon
from varlora.methods.method import Job, Method, with_options
from varlora.methods.temperature import Temperature, fit_temperature

METHODS: Mapping[str, Callable[..., Method]] = {
    "adamw": AdamW,
    "ivon": Ivon,
    "temperature": Temperature,
}

__all__ = ["METHODS", "AdamW", "Ivon", "Job", "Method", "Temperature", "fit_temperature", "with_options"]
