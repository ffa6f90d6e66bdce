"""What `eval`, `predict` and `tune` share: a finished run or another folder with trained weights, read and loaded."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.markup import escape

from varlora.cli.console import say
from varlora.io.folders import atomic_file
from varlora.posterior import PredictionConfig
from varlora.prediction.prediction_setup import choose_config, choose_default_config, remove_tuning
from varlora.prediction.until_sure import most_draws
from varlora.runs.any_posterior import check_has_weights
from varlora.runs.config import RunConfig
from varlora.runs.data import name_pairs
from varlora.runs.finished import read_finished_folder
from varlora.runs.folder import RunFolder, is_run
from varlora.runs.setting import PROMPTS_VERIFIED
from varlora.runs.text_settings import read_texts
from varlora.tasks.files import read_records, reads_once, stream_records
from varlora.tasks.jsonl import read_label_names
from varlora.tasks.rows import Records

SAID = (
    *("model_name_or_path", "gguf_file", "dtype", "quantization", "max_length", "truncation"),
    *("per_device_eval_batch_size", "max_new_tokens"),
    *("prompt_style", "label_answers", "prompt_template", "prompt_format", "system_prompt"),
)
"""Options that are settings: where and how a run is used now, and what another folder does not say."""


def read_foreign_rows(arguments: Namespace, file: str | None, option: str, *, labelled: bool) -> Records | None:
    """Rows that a folder will be asked, where `varlora train` has not written it: their columns may tell its task.

    Args:
        arguments: of the command line.
        file: the rows'.
        option: what names the file, for a folder that has no rows of its own.
        labelled: whether their answers are read.

    Returns:
        None of a run, which says itself what its rows are.

    Raises:
        ValueError: it is no run and has no weights, or there is no file, or it does not read.
    """
    if is_run(arguments.run) or not Path(arguments.run).is_dir():
        return None
    check_has_weights(arguments.run)
    if file is None:
        raise ValueError(
            f"{arguments.run} has no rows of its own, since `varlora train` has not written it. Give a file of them: "
            f"--{option} FILE."
        )
    columns = name_pairs("dataset_columns", arguments.dataset_columns)
    return read_records(file, labelled=labelled, once=True, columns=columns)


def read_first(arguments: Namespace, file: str) -> Records | None:
    """The first rows of a file that is to be read part by part, for the same end; None of a pipe, which is read once.

    Raises:
        ValueError: the file does not read.
    """
    if is_run(arguments.run) or not Path(arguments.run).is_dir() or reads_once(file):
        return None
    columns = name_pairs("dataset_columns", arguments.dataset_columns)
    return next(stream_records(file, PROMPTS_VERIFIED, labelled=False, columns=columns))


def read_folder(arguments: Namespace, rows: Records | None = None) -> RunFolder:
    """The folder, with what the command line says of it.

    Args:
        arguments: of the command line.
        rows: those that it will be asked, as `read_foreign_rows` gave them.

    Raises:
        ValueError: it is no folder with trained weights, or more has to be said of it.
    """
    if arguments.answers is not None and arguments.label_names_file is not None:
        raise ValueError("give --answers or --label_names_file, not both: each names the classes.")
    answers = arguments.answers.split(",") if arguments.answers is not None else None
    if arguments.label_names_file is not None:
        answers = read_label_names(arguments.label_names_file)
    settings: dict[str, Any] = read_texts({name: getattr(arguments, name) for name in SAID})
    return read_finished_folder(
        arguments.run,
        rows=rows,
        answers=None if answers is None else [answer.strip() for answer in answers],
        **settings,
    )


def read_finished(
    arguments: Namespace, rows: Records | None = None, *, judged: bool = True
) -> tuple[RunFolder, RunConfig, PredictionConfig]:
    """The run, tuned or as trained, its settings as they are now, and how it is to be predicted with.

    Args:
        arguments: of the command line.
        rows: those that it will be asked, as `read_foreign_rows` gave them.
        judged: whether its ways to predict are to be judged, so that it draws whether or not that helps. Where it is
            only to answer, and nobody says how many draws, it does so at the mean unless draws were shown to help.

    Raises:
        ValueError: as `read_folder`; or draws are asked for of a run whose mean was chosen.
    """
    run = read_folder(arguments, rows)
    config = run.config
    q = remove_tuning(run.posterior) if arguments.untuned else run.posterior
    if q.meta.tuned is not None:
        say(f"As `varlora tune` chose: {q.meta.tuned.describe()} (--untuned: as trained).")
    samples = most_draws(q) if arguments.samples == "auto" else arguments.samples
    if judged:
        how = choose_config(q, samples, config.samples)
    else:
        mode = getattr(arguments, "mode", None)
        how = choose_default_config(q, samples, config.samples, mode=mode, tell=False)
    return dataclasses.replace(run, posterior=q), config, how


def write_new_file(file: Path, text: str, *, overwrite: bool) -> None:
    """Writes a file that `check_new_file` has allowed, whole or not at all, and says so."""
    with atomic_file(file, overwrite=overwrite) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    say(f"Written to [bold]{escape(str(file))}[/bold].")


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
