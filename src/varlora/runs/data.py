"""The data that a run's settings name: the task, its shifted test sets, and as many rows of each as are wanted."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from varlora.io.nearest import nearest
from varlora.runs.base_model import tokenizer_name
from varlora.runs.config import RunConfig
from varlora.runs.folder import RunFolder
from varlora.runs.folder_config import FolderConfig
from varlora.tasks import (
    TASKS,
    Task,
    add_shift_tasks,
    keep_num_choices,
    limit_split,
    load_hub,
    load_jsonl,
    load_more,
)
from varlora.tasks.columns import rename_columns
from varlora.tasks.description import Wording
from varlora.tasks.files import read_records, stream_records
from varlora.tasks.named import Benchmark
from varlora.tasks.overlap import note_overlap
from varlora.tasks.prompt_styles import ChoiceRole
from varlora.tasks.rows import Records

logger = logging.getLogger(__name__)

FOUR = 4
"""The number of choices that `choices: four` keeps."""


def load_task(config: RunConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Task:
    """The task that a run's settings name, with its shifted test sets and as many rows as they allow.

    In this order: load, and cut a validation split where there is none; filter by the number of choices; add the test
    sets of `shift_tasks` (filtered in the same way); draw the rows.

    Args:
        config: the run's settings.
        tokenizer: for chats.

    Raises:
        ValueError: the data do not fit the settings or each other; the message says what to do.
    """
    if isinstance(config, FolderConfig):
        raise ValueError(
            f"{config.output_dir} has no rows of its own, since `varlora train` has not written it. Give a file of "
            "them: test_file to `varlora eval`, validation_file to `varlora tune`."
        )
    task = _filtered(_whole_task(config, tokenizer), config)
    if config.final_answer is not None:
        task = replace(task, final_answer=None if config.final_answer == "none" else config.final_answer)
    if shifts := _shift_names(config):
        others = {name: _named(name, config, tokenizer, shift=True) for name in shifts}
        task = add_shift_tasks(task, {name: _filtered(other, config) for name, other in others.items()})
    most = {"train": config.max_train_samples, "validation": config.max_validation_samples}
    for split in tuple(task.splits):
        if (size := most.get(split, config.max_test_samples)) is not None:
            task = limit_split(task, split, size, seed=config.data_seed)
    return task


def read_new_rows(file: str, config: RunConfig, *, labelled: bool, columns: str | None = None) -> Records:
    """Another file's rows for a finished run, under our names.

    Args:
        file: the file; "-" for standard input.
        config: the run's settings.
        labelled: whether the rows' answers are read.
        columns: the file's columns by our names, as `dataset_columns`; None: those of the run's own data, for each of
            which the file may have our name.

    Raises:
        ValueError: the file does not read, or lacks a column.
    """
    pairs = name_pairs("dataset_columns", config.dataset_columns if columns is None else columns)
    return read_records(file, labelled=labelled, once=True, columns=pairs, either=columns is None)


def stream_new_rows(
    file: str, config: RunConfig, size: int, *, labelled: bool, columns: str | None = None
) -> Iterator[Records]:
    """`read_new_rows`, part by part (`stream_records`).

    Args:
        file, config, labelled, columns: as of `read_new_rows`.
        size: most rows in a part.

    Raises:
        ValueError: as `read_new_rows`, when the row is reached.
    """
    pairs = name_pairs("dataset_columns", config.dataset_columns if columns is None else columns)
    return stream_records(file, size, labelled=labelled, columns=pairs, either=columns is None)


def load_own_rows(run: RunFolder) -> Task:
    """A run's task with its own rows; no model is loaded.

    Raises:
        ValueError: as of `load_task`.
    """
    return load_task(run.config, chat_tokenizer(run))


def put_beside_own(rows: Task, run: RunFolder, splits: Collection[str], *, own: Task | None = None) -> Task:
    """Other rows to choose something on, with some of the run's own splits beside them, so that what they share shows.

    A warning says how many of them the run was trained on; another, where its own data cannot be read any more, that
    nothing was compared.

    Args:
        rows: the other rows.
        run: the run.
        splits: which of its splits; those that it lacks do not matter.
        own: its task, where that is loaded already.
    """
    known = set(splits) & set(run.facts["task"]["rows"])
    if known and own is None:
        try:
            own = load_own_rows(run)
        except (ValueError, OSError) as error:
            logger.warning(
                "the data of %s cannot be read, so whether rows of %s are among those is not known: %s",
                *(run.path, rows.source, error),
            )
    if own is None:
        return rows
    beside = {split: own.rows(split) for split in known if split in own.splits}
    return note_overlap(rows.with_splits(beside), list(rows.splits))


def load_new_rows(
    rows: str | Records,
    run: RunFolder,
    *,
    split: str,
    labelled: bool,
    columns: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    logged: set[str] | None = None,
) -> Task:
    """Other rows for a finished run's task, worded as its own were.

    Args:
        rows: a file, "-" for standard input, or records; those that `read_new_rows` has not read may have the names of
            the run's own data, or ours.
        run: the run, with its settings as they are now.
        split: what to call the rows.
        labelled: whether their answers are read.
        columns: of a file: as for `read_new_rows`.
        tokenizer: the one whose chat template writes prompts; the run's own unless given.
        logged: as of `build_task`.

    Raises:
        ValueError: a row does not fit; the message says which, and why.
    """
    facts, config = run.facts["task"], run.config
    if not isinstance(rows, Records):
        rows = read_new_rows(rows, config, labelled=labelled, columns=columns)
    elif rows.as_given is None:
        rows = rename_columns(rows, name_pairs("dataset_columns", config.dataset_columns), either=True)
    task = load_more(
        rows,
        kind=facts["kind"],
        answers=facts["answers"],
        shape=facts.get("shape"),
        split=split,
        labelled=labelled,
        name=facts["name"],
        wording=wording_of(config),
        tokenizer=tokenizer or chat_tokenizer(run),
        logged=logged,
    )
    return replace(task, final_answer=facts.get("final_answer"))


def chat_tokenizer(run: RunFolder) -> PreTrainedTokenizerBase | None:
    """The run's tokenizer, whose chat template writes its prompts; None where it writes none."""
    if not run.is_completion and run.config.prompt_format != "chat":
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer_name(run.config, run.path))
    return tokenizer


def wording_of(config: RunConfig) -> Wording:
    """How a causal language model of a run is asked; what a choice is to its question, its named task says."""
    if isinstance(config, FolderConfig):
        choice_role: ChoiceRole = config.choice_role
    else:
        task = TASKS.get(config.task) if config.task is not None else None
        choice_role = task.choice_role if isinstance(task, Benchmark) else "answer"
    style, labels = config.prompt_style, config.label_answers
    return Wording.of(config.own_prompt, prompt_style=style, label_answers=labels, choice_role=choice_role)


def task_folder(name: str) -> str:
    """What a named task's folder is called among those of other tasks.

    Args:
        name: of the task; that of an unknown one is its folder's.

    Example:
        >>> task_folder("mmlu_chemistry")
        'mmlu'
    """
    loader = TASKS.get(name)
    return loader.folder if isinstance(loader, Benchmark) and loader.folder is not None else name


def _shift_names(config: RunConfig) -> list[str]:
    """The names in `shift_tasks`, comma-separated."""
    if config.shift_tasks is None:
        return []
    names = [name.strip() for name in config.shift_tasks.split(",")]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"shift_tasks names {', '.join(twice)} twice; once is enough.")
    if config.task in names:
        raise ValueError(
            f"shift_tasks names {config.task!r}, which is the task itself; its test rows are there already."
        )
    return names


def _filtered(task: Task, config: RunConfig) -> Task:
    return keep_num_choices(task, FOUR) if config.choices == "four" else task


def _named(name: str, config: RunConfig, tokenizer: PreTrainedTokenizerBase | None, *, shift: bool = False) -> Task:
    """A named task, from its own folder or the hub."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{' in shift_tasks' * shift}; {nearest(name, TASKS)}")
    loader = TASKS[name]
    folder: str | Path | None = config.task_dir
    if shift:
        if isinstance(loader, Benchmark):
            loader = loader.tests_only()
        folder = Path(config.shift_task_dir) / task_folder(name) if config.shift_task_dir is not None else None
    given: dict[str, Any] = {}
    if config.own_prompt.is_set:
        if not {"prompt", "tokenizer"} <= signature(loader).parameters.keys():
            raise ValueError(
                f"the task {name!r} of a package words its rows itself; prompt_template and prompt_format have no "
                "effect on it. Leave them out."
            )
        given = {"prompt": config.own_prompt, "tokenizer": tokenizer}
    return loader(folder, **_loading(config), **given)


def _loading(config: RunConfig) -> dict[str, Any]:
    """What every loader takes: the split to cut, and how a model is asked."""
    size = config.validation_size
    return {
        "validation_size": size if size < 1 else int(size),
        "seed": config.data_seed,
        "label_answers": config.label_answers,
        "prompt_style": config.prompt_style,
    }


def _whole_task(config: RunConfig, tokenizer: PreTrainedTokenizerBase | None) -> Task:
    if config.task is not None:
        return _named(config.task, config, tokenizer)
    columns = name_pairs("dataset_columns", config.dataset_columns)
    own: dict[str, Any] = {"label_names": config.label_names_file, "prompt": config.own_prompt, "tokenizer": tokenizer}
    if config.dataset_name is not None:
        named = name_pairs("dataset_splits", config.dataset_splits)
        splits = {ours: None if theirs == "none" else theirs for ours, theirs in named.items()}
        return load_hub(
            config.dataset_name,
            config.dataset_config,
            columns=columns,
            splits=splits,
            ood_splits=["ood"] if splits.get("ood") is not None else [],
            **own,
            **_loading(config),
        )
    given = {split: getattr(config, f"{split}_file") for split in ("train", "validation", "test", "shift", "ood")}
    files = {split: file for split, file in given.items() if file is not None}
    return load_jsonl(files, columns=columns, ood_splits=["ood"] if "ood" in files else [], **own, **_loading(config))


def name_pairs(option: str, given: str | None) -> Mapping[str, str]:
    """What an option says of the data's names, by our names.

    Args:
        option: its name, for the error.
        given: what it is.

    Raises:
        ValueError: it is not pairs of names.

    Example:
        >>> name_pairs("dataset_columns", "text=sentence, label=polarity")
        {'text': 'sentence', 'label': 'polarity'}
    """
    if given is None:
        return {}
    pairs = [pair.split("=") for pair in given.split(",")]
    if any(len(pair) != 2 for pair in pairs) or len({ours.strip() for ours, _ in pairs}) < len(pairs):
        raise ValueError(f"{option} is {given!r}; write 'our_name=its_name', comma-separated, each of our names once.")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}
