"""What `eval` and `predict` share: a finished run, read back and loaded."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

from transformers import AutoTokenizer

from varlora.cli.parsing import CommandParser
from varlora.runs import RunConfig, RunFolder, Setting, read_run, reload_setting
from varlora.tasks import Task, load_more


def add_options(made: CommandParser) -> None:
    """The run, and where and how it is run now; a command's own options come before."""
    made.add_argument("run", metavar="RUN", help="Folder of a finished run.")
    made.option("samples", "Posterior draws; 0 is the mean alone. The run's own number otherwise.", type=int)
    made.option("model_name_or_path", "Where the base model is now, if not where it was in training.", metavar="MODEL")
    made.option("truncation", "What to do with rows that are too long.", choices=["error", "left", "right"])
    made.option("per_device_eval_batch_size", "Rows per device.", type=int)
    made.flag("overwrite", "Replace the output file.")
    made.flag("no_progress", "Show no progress bars.")


def read_finished(arguments: Namespace) -> tuple[RunFolder, RunConfig]:
    """The run, and its settings with what the command line changes."""
    run = read_run(arguments.run)
    names = ("samples", "model_name_or_path", "truncation", "per_device_eval_batch_size")
    changed = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return run, dataclasses.replace(run.config, **changed)


def load_finished(run: RunFolder, config: RunConfig, task: Task | None = None) -> Setting:
    """The base model with the run's adapter, and the rows: the run's own, or another file's."""
    return reload_setting(config, run.path, run.posterior.meta, task)


def rows_of(file: str, run: RunFolder, config: RunConfig, *, split: str, labelled: bool) -> Task:
    """Another file's rows, for the run's task."""
    facts = run.facts["task"]
    chat = facts["kind"] == "completion"
    return load_more(
        file,
        kind=facts["kind"],
        answers=facts["answers"],
        split=split,
        labelled=labelled,
        name=facts["name"],
        label_answers=config.label_answers,
        tokenizer=AutoTokenizer.from_pretrained(str(run.path)) if chat else None,
    )


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
