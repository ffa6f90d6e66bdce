"""The posterior of a folder, whoever wrote it, and its health: from files alone, without transformers and PEFT."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, TypedDict

from varlora.io.files import read_json
from varlora.io.folders import content_in_words
from varlora.posterior import Posterior
from varlora.posterior.adapter_files import point_mass_from_adapter
from varlora.posterior.folder import MANIFEST, load_posterior
from varlora.posterior.manifest import ADAPTER_CONFIG, ADAPTER_MEAN, CheckpointError, read_whole_manifest
from varlora.prediction.prediction_setup import SAMPLES
from varlora.report import Health
from varlora.runs.folder import CONFIG, check_run, is_run, read_run
from varlora.runs.health import run_health

logger = logging.getLogger(__name__)

OPTIMIZER, _STATE = "optimizer.pt", "trainer_state.json"


class _State(TypedDict):
    log_history: list[dict[str, Any]]


def read_posterior(folder: str | os.PathLike[str]) -> Posterior:
    """The posterior of a run, a posterior folder, a Trainer's folder or checkpoint; of a plain adapter a point mass.

    Raises:
        ValueError: there is none, or it is damaged; the message names the file and what to do.
    """
    path = Path(folder)
    check_has_weights(path)
    if (path / MANIFEST).is_file():
        return load_posterior(path)
    if (path / OPTIMIZER).is_file():
        from varlora.ivon.trainer_checkpoint import OtherOptimizerError, posterior_from_checkpoint

        try:
            return posterior_from_checkpoint(path)
        except OtherOptimizerError as error:
            if not (path / ADAPTER_CONFIG).is_file():
                raise _without_weights(path) from error
            logger.warning("the weights alone are read: %s", error)
    return point_mass_from_adapter(path)


def check_has_weights(folder: str | os.PathLike[str]) -> None:
    """Refuses a folder without trained weights, before anything else is asked of it; none are read.

    Raises:
        ValueError: there are none; the message says what is there, what is missing, and what to do.
    """
    path = Path(folder)
    if is_run(path):
        check_run(path)
    if (path / MANIFEST).is_file() or not path.is_dir():
        read_whole_manifest(path)
    elif not any((path / name).is_file() for name in (OPTIMIZER, ADAPTER_CONFIG)):
        raise _without_weights(path)


def read_health(folder: str | os.PathLike[str]) -> Health:
    """How a folder's posterior does, from its files alone: no model is loaded, and nothing need be said of the task.

    Args:
        folder: as of `read_posterior`. Beside a Trainer's, `trainer_state.json` has the log.

    Raises:
        ValueError: as `read_posterior`.
    """
    path = Path(folder)
    if is_run(path):
        return read_run(path).health()
    log: list[dict[str, Any]] = []
    if (state := path / _STATE).is_file():
        log = read_json(state, _State)["log_history"]
    return run_health(read_posterior(path), {}, SAMPLES, log)


def _without_weights(path: Path) -> CheckpointError:
    told = f"{path} holds no adapter and no posterior: it {content_in_words(path)}. {_elsewhere(path)}"
    return CheckpointError(told)


def _elsewhere(path: Path) -> str:
    """Where else there may be one, in a folder that has none."""
    checkpoints = [inside for inside in path.glob("checkpoint-*") if inside.name.split("-")[-1].isdigit()]
    if checkpoints:
        newest = max(checkpoints, key=lambda inside: int(inside.name.split("-")[-1]))
        return f"It holds a Trainer's checkpoints; give one of them: {newest}"
    below = sorted(inside.parent for inside in path.glob(f"*/{ADAPTER_CONFIG}"))
    if below:
        return f"It holds adapters in folders of their own; give one of them: {', '.join(map(str, below))}"
    if (path / ADAPTER_MEAN).is_file():
        return f"Its {ADAPTER_MEAN} needs the {ADAPTER_CONFIG} that PEFT writes beside it. Copy the folder again."
    if (path / CONFIG).is_file():
        return f"Its {CONFIG} says how to train, and is no result: varlora train --config {path / CONFIG}"
    if (path / "config.json").is_file():
        return "It holds a whole model; varlora predicts with adapters on one (`varlora.predict` takes any model)."
    return (
        "Give the output_dir of a finished `varlora train`, or what save_posterior, trainer.save_model or PEFT's "
        "save_pretrained wrote."
    )
