"""Datasets of the Hugging Face hub, or saved folders of the same kind, as tasks.

The columns are renamed to one of the five shapes of `rows.py`; from there on every row is checked like a
line of a user's own file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varlora.tasks.build import build_task
from varlora.tasks.columns import renamed
from varlora.tasks.description import Wording
from varlora.tasks.jsonl import read_label_names
from varlora.tasks.overlap import note_overlap
from varlora.tasks.own_prompts import OwnPrompt
from varlora.tasks.rows import LabelAnswers, Records
from varlora.tasks.splitting import VALIDATION_SIZE, cut_validation
from varlora.tasks.task import Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


OWN = ("train", "validation", "test")
"""Splits that are taken from a dataset unless others are named."""


def load_hub(
    dataset: str,
    config: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    splits: Mapping[str, str | None] | None = None,
    revision: str | None = None,
    name: str | None = None,
    label_names: Sequence[str] | str | Path | None = None,
    ood_splits: Collection[str] = (),
    label_answers: LabelAnswers = "names",
    prompt_style: str = "varlora",
    prompt: OwnPrompt | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    validation_size: float | int = VALIDATION_SIZE,
    seed: int = 0,
) -> Task:
    """Load a task from a dataset of the hub or a folder written by `save_to_disk`.

    Args:
        dataset: Name on the hub, e.g. "stanfordnlp/imdb", or a local folder.
        config: The dataset's configuration.
        columns: The shape's field to the dataset's column, e.g. {"text": "sentence"}. Fields not named here
            are taken from the column of the same name.
        splits: Split name here to split name there, or to None to leave it out, e.g. {"test": "validation"} where the
            rows of "test" have no labels. Train, validation and test that are not named are the dataset's own, unless
            they are taken under another name.
        revision: Commit or tag on the hub.
        name: Name of the task; the dataset's by default.
        label_names: Class names in order, or a file of them; by default those the dataset's label column carries.
        ood_splits: See `load_jsonl`.
        label_answers: See `load_jsonl`.
        prompt_style: See `load_jsonl`.
        prompt: See `load_jsonl`.
        tokenizer: See `load_jsonl`.
        validation_size: See `load_jsonl`.
        seed: See `load_jsonl`.

    Raises:
        ValueError: If a split or column is not there (naming those that are) or a row does not fit.
    """
    import datasets  # `varlora tasks` need not wait for it

    columns = columns or {}
    data = read_dataset(dataset, config, revision=revision)
    named = splits or {}
    own = {split: split for split in OWN if split in data and split not in named and split not in named.values()}
    wanted = {split: there for split, there in {**own, **named}.items() if there is not None}
    missing = [there for there in wanted.values() if there not in data]
    if missing or not wanted:
        raise ValueError(
            f"{dataset}: no split {', '.join(map(repr, missing)) or 'train, validation or test'}; "
            f"it has {', '.join(data)}"
        )
    names = read_label_names(label_names) if isinstance(label_names, (str, Path)) else label_names
    sources = {}
    for split, there in wanted.items():
        rows = data[there]
        absent = [column for column in columns.values() if column not in rows.column_names]
        if absent:
            raise ValueError(f"{dataset}, {there}: no column {absent}; it has {', '.join(rows.column_names)}")
        label = rows.features.get(columns.get("label", "label"))
        if names is None and isinstance(label, datasets.ClassLabel):
            names = label.names
        ours = [renamed(row, columns) for row in rows]
        sources[split] = Records(where=f"{dataset}:{there}", rows=ours, unit="row", instead=_instead(split, data))
    task = build_task(
        name or dataset,
        sources,
        label_names=names,
        ood_splits=ood_splits,
        wording=Wording.of(prompt, prompt_style=prompt_style, label_answers=label_answers),
        tokenizer=tokenizer,
        source="/".join(filter(None, [dataset, config])) + (f" @ {revision}" if revision else ""),
    )
    return note_overlap(cut_validation(task, size=validation_size, seed=seed))


def _instead(split: str, data: Mapping[str, Any]) -> str:
    """What to do with a split whose rows have no labels."""
    others = [there for there in data if there not in ("train", split)]
    other = f", and {split}={others[0]} takes other rows for it" if others and split != "train" else ""
    return f". If the split has no labels: dataset_splits (splits=) {split}=none leaves it out{other}"


def read_dataset(
    dataset: str, config: str | None = None, *, revision: str | None = None
) -> dict[str, datasets.Dataset]:
    """The splits of a dataset of the hub, or of a folder written by `save_to_disk`.

    Raises:
        ValueError: If the dataset cannot be found or read.
    """
    import datasets

    folder = Path(dataset)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            data = datasets.load_from_disk(dataset)
        else:
            data = datasets.load_dataset(dataset, config, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"the dataset {dataset!r}{f' ({config})' if config else ''} cannot be loaded: {error}; "
            "check the name, the configuration and the connection, or give a local folder"
        ) from error
    return dict(data) if isinstance(data, Mapping) else {"train": data}
