"""Where a posterior comes from when another project's program asks for it: a run's folder, or a posterior's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varlora.posterior import Posterior
from varlora.prediction.prediction_setup import SAMPLES, remove_tuning
from varlora.readout.readout import ClassHead
from varlora.runs.any_posterior import read_posterior
from varlora.runs.base_model import locate_model, pretrained_name
from varlora.runs.folder import is_run, read_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder with a posterior, and how it is predicted with where nobody says otherwise.

    Attributes:
        folder: where it is.
        q: its posterior, tuned or as trained.
        base: the base model, name or folder.
        revision: of the base model.
        dtype: of the base model, as in training; "auto" where a folder does not say it.
        samples: number of draws.
        seed: of the draws.
    """

    folder: Path
    q: Posterior
    base: str
    revision: str
    dtype: str
    samples: int
    seed: int


def read_source(posterior: str, pretrained: str | None = None, *, untuned: bool = False) -> Source:
    """Reads the posterior of a causal language model from a run's folder or a posterior's.

    Args:
        posterior: the folder.
        pretrained: the base model, as `model_name_or_path`; None takes what the folder recorded.
        untuned: leave aside what `varlora tune` chose.

    Raises:
        ValueError: it is no such folder, its model is no causal language model, or the base model is not there.

    Example:
        >>> read_source("no-such-folder")
        Traceback (most recent call last):
        ...
        ValueError: posterior is 'no-such-folder', which is no folder. Give the output_dir of a finished run.
    """
    folder = Path(posterior)
    if not folder.is_dir():
        raise ValueError(f"posterior is {posterior!r}, which is no folder. Give the output_dir of a finished run.")
    recorded: Mapping[str, Any]
    if is_run(folder):
        run = read_run(folder)
        q, config = run.posterior, run.config
        recorded = {
            "base": config.model_name_or_path,
            "gguf_file": config.gguf_file,
            "revision": config.model_revision,
            "dtype": config.dtype,
            "quantization": config.quantization,
        }
        samples, seed = config.samples, config.seed
    else:
        q = read_posterior(folder)
        loading = {"dtype": "auto", "quantization": "none", **(q.meta.base_loading or {})}
        recorded = {"base": q.meta.base_model, "gguf_file": None, "revision": q.meta.base_revision, **loading}
        samples, seed = SAMPLES, 0
    _check_causal(q, folder)
    base = pretrained if pretrained is not None else recorded["base"]
    if base is None:
        raise ValueError(f"{folder} does not say its base model; give it as pretrained=BASE.")
    base = str(base)
    if locate_model(base).is_missing:
        raise ValueError(f"there is no base model folder {base}; say where it is now with pretrained=BASE.")
    moved = recorded["base"] is not None and os.path.realpath(base) != os.path.realpath(recorded["base"])
    if moved:
        logger.warning("%s was trained on %s; it is used with %s.", folder, recorded["base"], base)
    if (bits := recorded["quantization"]) != "none":
        logger.warning(
            "%s was trained over a base model in %s; give load_in_%s=True, or it is measured over the whole one.",
            folder,
            bits,
            bits,
        )
    revision, gguf_file = (None, None) if moved else (recorded["revision"], recorded["gguf_file"])
    return Source(
        folder=folder,
        q=remove_tuning(q) if untuned else q,
        base=pretrained_name(base, gguf_file, revision=revision, dtype=recorded["dtype"]),
        revision=revision or "main",
        dtype=recorded["dtype"],
        samples=samples,
        seed=seed,
    )


def _check_causal(q: Posterior, folder: Path) -> None:
    if q.meta.adapter_config is None:
        raise ValueError(f"{folder} holds no adapter of a language model, but the weights of a plain module.")
    head = (q.meta.readout or {}).get("kind") == ClassHead.kind
    if head or q.meta.adapter_config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{folder} answers by a classification head; lm-evaluation-harness asks a causal language model how likely "
            "texts are. Measure it with `varlora eval`."
        )
