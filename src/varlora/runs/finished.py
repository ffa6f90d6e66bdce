"""A folder with trained weights, whoever wrote it, read as a finished run: how to load its model and read rows.

    varlora train                   config.yaml, run.json           says everything
    save_posterior, a Trainer       posterior.json                  says what training knew (`PosteriorMeta.task`)
    a Trainer's checkpoint          optimizer.pt                    the same, if the optimizer was IVON
    PEFT's save_pretrained          adapter_config.json             the base model

What a folder does not say is asked for: every error names the settings that say it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from varlora.io.nearest import nearest
from varlora.methods import METHODS
from varlora.posterior import PointMass, Posterior, PosteriorMeta
from varlora.posterior.folder import MANIFEST
from varlora.posterior.manifest import CheckpointError
from varlora.readout.readout import ClassHead, answers_of, readout_from_dict
from varlora.runs.any_posterior import read_posterior
from varlora.runs.config import SETTINGS, RunConfig
from varlora.runs.data import load_new_rows, wording_of
from varlora.runs.folder import Facts, RunFolder, TaskFacts, is_run, read_run
from varlora.runs.folder_config import FolderConfig
from varlora.runs.load_model import family_of, load_tokenizer
from varlora.runs.setting import PROMPTS_VERIFIED, readout_of
from varlora.tasks.description import TaskDescription, Wording
from varlora.tasks.own_prompts import WHOLE, OwnPrompt
from varlora.tasks.prompts import LETTERS, YES_NO
from varlora.tasks.rows import Records
from varlora.tasks.task import TaskKind

NOW = (
    *("model_name_or_path", "gguf_file", "model_revision", "dtype", "quantization", "max_length", "truncation"),
    *("per_device_eval_batch_size", "max_new_tokens"),
)
"""Settings that may be others now than they were in training."""
_WORDING = tuple(field.name for field in dataclasses.fields(Wording))
_DTYPES = ("float32", "bfloat16", "float16")
_FAMILIES: Mapping[str, str] = {"CAUSAL_LM": "causal", "SEQ_CLS": "encoder"}
"""How a model is read, by PEFT's task type."""


def read_finished_folder(
    folder: str | os.PathLike[str],
    *,
    rows: Records | None = None,
    kind: TaskKind | None = None,
    answers: Sequence[str] | None = None,
    **settings: Any,
) -> RunFolder:
    """What a run folder, a posterior folder, a Trainer's folder or a plain PEFT adapter takes to be predicted with.

    Args:
        folder: the folder.
        rows: some that it will be asked, of which the columns tell the kind of a task that the folder does not name.
        kind: of the task, where neither the folder nor `rows` say it.
        answers: names of the classes in the model's order, where the folder does not say them.
        settings: of `RunConfig`. Those of `NOW` take the place of the folder's own; others, such as `prompt_style`,
            say what the folder does not. None is not given.

    Returns:
        The folder as a finished run. Without `varlora train` it has no rows, no metrics and no predictions, and its
        `config` is a `FolderConfig`.

    Raises:
        ValueError: nothing of the kind is there or it is damaged; it does not say what is needed, and neither do the
            arguments; or they contradict it. The message names the settings.

    Example:
        >>> read_finished_folder("no-such-folder")
        Traceback (most recent call last):
        ...
        varlora.posterior.manifest.CheckpointError: no-such-folder is not a folder that exists.
    """
    path = Path(folder)
    if is_run(path):
        return run_now(read_run(path), kind=kind, answers=answers, **settings)
    given = _given(settings)
    q = read_posterior(path)
    described = _described(path, q.meta)
    facts = _task_facts(path, q.meta, described, rows=rows, kind=kind, answers=answers)
    said = _said(described)
    free = (*NOW, *_WORDING) if described is not None and described.kind == "completion" else NOW
    _check_alike(path, {name: value for name, value in said.items() if name not in free}, given)
    config = _config(path, q, {**_loading(q.meta), **said, **_moved(given)})
    if config.final_answer is not None:
        facts["final_answer"] = None if config.final_answer == "none" else config.final_answer
    if facts["kind"] != "completion" and not {"prompt_style", "prompt_template"} & {**said, **given}.keys():
        _check_encoder(path, config)
    run = RunFolder(
        path=path,
        config=config,
        posterior=q,
        metrics={},
        facts=cast(Facts, {"fingerprint": "", "task": facts, "seconds": {}, "versions": {}}),
    )
    return run if facts["kind"] == "completion" or q.meta.readout is not None else _with_readout(run, rows)


def with_description(run: RunFolder) -> Posterior:
    """The posterior of a folder with what is known of its task, so that another folder of it says the same."""
    q, facts, config = run.posterior, run.facts["task"], run.config
    if q.meta.task is not None:
        return q
    described = TaskDescription(
        name=facts["name"],
        kind=facts["kind"],
        answers=tuple(facts["answers"]),
        final_answer=facts.get("final_answer"),
        wording=wording_of(config),
        family=family_of(config),
        max_length=config.max_length,
        truncation=config.truncation,
        shape=facts.get("shape"),
    )
    return dataclasses.replace(q, meta=dataclasses.replace(q.meta, task=described.to_dict()))  # type: ignore[type-var]


def run_now(
    run: RunFolder, *, kind: TaskKind | None = None, answers: Sequence[str] | None = None, **settings: Any
) -> RunFolder:
    """A run that says everything, with where and how it is used now.

    Args:
        run: the run, as it was trained.
        kind, answers, settings: as of `read_finished_folder`.

    Raises:
        ValueError: one is no setting, or contradicts what the run was trained with.
    """
    given, facts = _given(settings), run.facts["task"]
    known = {"kind": facts["kind"], "answers": tuple(facts["answers"])}
    _check_alike(run.path, known, {"kind": kind, "answers": tuple(answers) if answers is not None else None})
    trained = {name: value for name, value in run.config.to_dict().items() if name not in NOW}
    _check_alike(run.path, trained, given)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **_moved(given)))


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are given, none of which is unknown."""
    given = {name: value for name, value in settings.items() if value is not None}
    if unknown := [name for name in given if name not in SETTINGS]:
        raise ValueError(f"unknown setting {unknown[0]!r}; {nearest(unknown[0], SETTINGS)}")
    return given


def _moved(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is given, with a base model that is elsewhere saying anew whether it is a file there, and which revision."""
    return {"gguf_file": None, "model_revision": None, **given} if "model_name_or_path" in given else given


def _check_alike(path: Path, said: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None and name in said and said[name] != value:
            raise ValueError(f"{name} is {value!r}, and {path} was trained with {said[name]!r}; leave {name} out.")


def _described(path: Path, meta: PosteriorMeta) -> TaskDescription | None:
    if meta.task is None:
        return None
    try:
        return TaskDescription.from_dict(meta.task)
    except ValueError as error:
        raise CheckpointError(f"{path / MANIFEST}: {error}") from error


def _said(described: TaskDescription | None) -> dict[str, Any]:
    """The settings that a description holds."""
    if described is None:
        return {}
    said: dict[str, Any] = {"model_class": described.family, "truncation": described.truncation}
    if described.max_length is not None:
        said["max_length"] = described.max_length
    return {**said, **(dataclasses.asdict(described.wording) if described.wording is not None else {})}


def _loading(meta: PosteriorMeta) -> dict[str, Any]:
    """The settings by which the base model is loaded as it was in training."""
    loading, config = meta.base_loading or {}, meta.adapter_config or {}
    return {
        "model_name_or_path": meta.base_model or "",
        "model_revision": meta.base_revision,
        "model_class": _FAMILIES.get(str(config.get("task_type"))),
        "dtype": loading.get("dtype") if loading.get("dtype") in _DTYPES else None,
        "quantization": loading.get("quantization"),
        "length_normalization": (meta.readout or {}).get("length_normalization"),
    }


def _config(path: Path, q: Posterior, settings: Mapping[str, Any]) -> FolderConfig:
    """The settings, with the defaults for those that are None."""
    if q.meta.adapter_config is None:
        raise ValueError(
            f"{path} holds the weights of a plain module and no adapter, which only your own program can load: "
            "varlora.load_posterior, then varlora.predict(model, q, ...)."
        )
    if not settings["model_name_or_path"]:
        raise ValueError(f"{path} does not say its base model; give it: --model_name_or_path MODEL.")
    method = q.meta.method if q.meta.method in METHODS else "adamw" if isinstance(q, PointMass) else "ivon"
    given = {name: value for name, value in settings.items() if value is not None}
    return FolderConfig(**{**given, "method": method, "output_dir": str(path)})


def _task_facts(
    path: Path,
    meta: PosteriorMeta,
    described: TaskDescription | None,
    *,
    rows: Records | None,
    kind: TaskKind | None,
    answers: Sequence[str] | None,
) -> TaskFacts:
    """The kind of the task and its classes, by what the folder says, else by the arguments, else by the rows.

    Whoever was trained on completions may be asked questions, too.
    """
    classes: tuple[str, ...] = described.answers if described is not None else ()
    if meta.readout is not None:
        classes = answers_of(readout_from_dict(meta.readout))
    known: dict[str, Any] = {"answers": classes} if classes else {}
    if described is not None and classes:
        known["kind"] = described.kind
    given = tuple(answers) if answers is not None else None
    _check_alike(path, known, {"kind": kind, "answers": given})
    classes = classes or given or ()
    of_rows = _kind_of(rows)
    task_kind = known.get("kind") or kind or of_rows
    if task_kind is None and classes:
        task_kind = "choice" if classes == tuple(LETTERS[: len(classes)]) else "label"
    if task_kind is None and described is not None:
        task_kind = described.kind
    if task_kind is None:
        raise ValueError(
            f"{path} does not say what it was trained on. Name the classes (--answers a,b,c or --label_names_file, in "
            "the model's order), or give rows whose columns tell: text; question and choices; passage and question; "
            "prompt; messages."
        )
    if task_kind == "choice" and not classes and rows is not None:
        choices = [row.get("choices") for row in rows.rows]
        classes = tuple(LETTERS[: max((len(own) for own in choices if isinstance(own, list)), default=0)])
    if task_kind == "label" and not classes and rows is not None and "passage" in rows.rows[0]:
        classes = YES_NO
    if task_kind != "completion" and not classes:
        raise ValueError(
            f"{path} does not name its classes. Give them in the model's order: --answers a,b,c, or --label_names_file "
            "FILE (a JSON list, or one name a line)."
        )
    return {
        "name": described.name if described is not None else path.name,
        "kind": task_kind,
        "answers": list(classes) if task_kind != "completion" else [],
        "final_answer": described.final_answer if described is not None and task_kind == "completion" else None,
        "shape": described.shape if described is not None and task_kind == described.kind else None,
        "rows": {},
    }


def _with_readout(run: RunFolder, rows: Records | None) -> RunFolder:
    """The folder with a readout of its classes, whose tokens are verified on the prompts of rows, or of an example."""
    config, q, facts = run.config, run.posterior, run.facts["task"]
    family = family_of(config)
    classes = tuple(facts["answers"])
    readout: Any = ClassHead(classes=classes)
    if family == "causal":
        tokenizer = load_tokenizer(config, run.path)
        some = _example(config.own_prompt, facts) if rows is None else rows
        some = dataclasses.replace(some, rows=some.rows[:PROMPTS_VERIFIED], labelled=False)
        known = {column for row in some.rows for column in row}  # what is not read of them is said elsewhere
        task = load_new_rows(some, run, split="example", labelled=False, tokenizer=tokenizer, logged=known)
        if len(task.answers) < len(classes):  # of questions with fewer choices
            space = task.continuations[0].removesuffix(task.answers[0])
            further = tuple(f"{space}{letter}" for letter in classes)
            task = dataclasses.replace(task, answers=classes, continuations=further)
        readout = readout_of(config, task, tokenizer, family, split="example")
    meta = dataclasses.replace(q.meta, readout=readout.to_dict())
    return dataclasses.replace(run, posterior=dataclasses.replace(q, meta=meta))  # type: ignore[type-var]


def _example(prompt: OwnPrompt, facts: TaskFacts) -> Records:
    """One row of the shape of a task's, in the words of which its answers' tokens are told."""
    fields = prompt.words.fields if prompt.words is not None else ()
    row: dict[str, Any] = {"text": "a text"}
    if facts["kind"] == "choice":
        row = {"question": "a question", "choices": [f"choice {letter}" for letter in facts["answers"]]}
    elif "passage" in fields:
        row = {"passage": "a passage", "question": "a question"}
    others = {name: "a text" for name in fields if name not in (*row, *WHOLE)}
    return Records(where="an example", rows=[{**others, **row}], labelled=False)


def _kind_of(rows: Records | None) -> TaskKind | None:
    """The kind of task that a file's columns are of; None where they may be of several, or of none."""
    columns = set(rows.rows[0]) if rows is not None and rows.rows else set()
    kinds: list[TaskKind] = []
    if "text" in columns or {"passage", "question"} <= columns:
        kinds.append("label")
    if {"question", "choices"} <= columns:
        kinds.append("choice")
    if columns & {"prompt", "messages"}:
        kinds.append("completion")
    return kinds[0] if len(kinds) == 1 else None


def _check_encoder(path: Path, config: RunConfig) -> None:
    """Refuses a causal language model of which nobody says how it was asked; an encoder reads the bare text."""
    if family_of(config) == "causal":
        raise ValueError(
            f"{path} does not say how its rows were worded for the model. Say it by prompt_style: --prompt_style "
            "varlora is our own wording (`varlora tasks NAME` shows each), with --label_answers letters where letters "
            "name the classes."
        )
