"""What `eval`, `predict` and `tune` share: a finished run, read back and loaded."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

from varlora.cli.console import out
from varlora.posterior import PredictionConfig
from varlora.prediction.prediction_setup import choose_config, choose_default_config, remove_tuning
from varlora.runs.config import RunConfig
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.setting import Setting, reload_setting
from varlora.tasks import Task

LOCATION = ("model_name_or_path", "gguf_file", "truncation", "per_device_eval_batch_size")
"""Settings of a run that may be others now."""


def read_finished(arguments: Namespace, *, judged: bool = True) -> tuple[RunFolder, RunConfig, PredictionConfig]:
    """The run, tuned or as trained, its settings as they are now, and how it is to be predicted with.

    Args:
        arguments: of the command line.
        judged: whether its ways to predict are to be judged, so that it draws whether or not that helps. Where it is
            only to answer, and nobody says how many draws, it does so at the mean unless draws were shown to help.

    Raises:
        ValueError: it is no run, or draws are asked for of a run whose mean was chosen.
    """
    run = read_run(arguments.run)
    config = changed(run.config, arguments)
    q = remove_tuning(run.posterior) if arguments.untuned else run.posterior
    if q.meta.tuned is not None:
        out.print(f"As `varlora tune` chose: {q.meta.tuned.describe()} (--untuned: as trained).", highlight=False)
    if judged:
        how = choose_config(q, arguments.samples, config.samples)
    else:
        mode = getattr(arguments, "mode", None)
        how = choose_default_config(q, arguments.samples, config.samples, mode=mode, tell=False)
    if arguments.max_new_tokens is not None:
        config = dataclasses.replace(config, max_new_tokens=arguments.max_new_tokens)
    return dataclasses.replace(run, posterior=q), config, how


def changed(config: RunConfig, arguments: Namespace) -> RunConfig:
    """A run's settings, with where it is run now."""
    others = {name: value for name in LOCATION if (value := getattr(arguments, name)) is not None}
    if "model_name_or_path" in others:
        others["gguf_file"] = arguments.gguf_file  # another place says anew whether it is a file there
    return dataclasses.replace(config, **others)


def load_finished(run: RunFolder, config: RunConfig, task: Task | None = None) -> Setting:
    """The base model with the run's adapter, and the rows: the run's own, or another file's."""
    return reload_setting(config, run.path, run.posterior.meta, task)


def check_new_file(file: str | None, *, overwrite: bool) -> Path | None:
    """A file that may be written; ask before hours of work.

    Raises:
        ValueError: it exists, and may not be replaced.
    """
    if file is None:
        return None
    path = Path(file)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; choose another file, or replace this one with --overwrite.")
    return path
