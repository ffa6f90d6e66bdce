"""The methods, one file each, under one contract (`varlora.methods.method.Method`).

A method is imported when it is looked up, so that `varlora methods` and `varlora train --help` do not wait for torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from varlora.methods.known import (
    METHODS,
    OWN_OPTIONS,
    checked_options,
    class_name,
    methods_with,
    options_of,
    register_method,
    summary_of,
)
from varlora.methods.options import Costs, MethodOptions
from varlora.registry.lazy import lazily
from varlora.registry.option_fields import option

if TYPE_CHECKING:
    from varlora.methods.adamw import AdamW
    from varlora.methods.blob import Blob
    from varlora.methods.ema import Ema
    from varlora.methods.ensemble import Ensemble
    from varlora.methods.ivon import Ivon
    from varlora.methods.laplace import Laplace
    from varlora.methods.mc_dropout import McDropout
    from varlora.methods.method import Fit, Job, Method, record
    from varlora.methods.scalabl import Scalabl
    from varlora.methods.swag import Swag
    from varlora.methods.temperature import Temperature, with_temperatures
    from varlora.methods.tfb import Tfb

__all__ = [
    "METHODS",
    "AdamW",
    "Blob",
    "Costs",
    "Ema",
    "Ensemble",
    "Fit",
    "Ivon",
    "Job",
    "Laplace",
    "McDropout",
    "Method",
    "MethodOptions",
    "Scalabl",
    "Swag",
    "Temperature",
    "Tfb",
    "checked_options",
    "methods_with",
    "option",
    "options_of",
    "record",
    "register_method",
    "summary_of",
    "with_temperatures",
]

_HOMES: Mapping[str, str] = {
    **{class_name(kind): name for name, kind in OWN_OPTIONS.items()},
    **dict.fromkeys(("Fit", "Job", "Method", "record"), "method"),
    "with_temperatures": "temperature",
}
__getattr__ = lazily("varlora.methods", {name: f"varlora.methods.{home}" for name, home in _HOMES.items()})
