"""How a named benchmark is loaded: from the hub, or from a local folder of JSONL files.

Each benchmark's own file (arc.py, sst2.py, ...) states its licence, source and splits in one `Benchmark`, and
how a row of the hub becomes one of the five shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from varlora.tasks.build import build_task
from varlora.tasks.hub import read_dataset
from varlora.tasks.jsonl import read_jsonl, read_label_names
from varlora.tasks.rows import LabelAnswers, Records
from varlora.tasks.splitting import cut_validation, note_overlap
from varlora.tasks.task import Task

logger = logging.getLogger(__name__)


class TaskLoader(Protocol):
    """Loads a named task."""

    def __call__(
        self,
        folder: str | Path | None = None,
        *,
        validation_size: float | int = 0.1,
        seed: int = 0,
        label_answers: LabelAnswers = "names",
    ) -> Task:
        """Load the task.

        Args:
            folder: A local folder of JSONL files; None loads from the hub.
            validation_size: Fraction or number of training rows to cut where no validation split exists.
            seed: Decides which rows are cut.
            label_answers: How a causal LM names a class: "names" or "letters".
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: where it comes from and how its rows read.

    Attributes:
        name: Name of the task.
        dataset: Name on the hub.
        config: Configuration on the hub.
        revision: Branch or commit on the hub.
        splits: Split name to the hub's split name.
        files: Split name to the file in a local folder; those marked optional may be missing.
        optional: Splits of `files` that a folder may lack.
        record: Turns a row of the hub (class labels as their names) into a record; None leaves a row out of
            the split, which `note` must then state.
        licence: Licence of the data.
        source: Citation.
        ood_splits: Splits of out-of-scope rows.
        label_names: Class names in order, where the data do not bring them.
        repeated_choices: Whether a question may offer one wrong choice twice.
        note: What a reader should know about the data as loaded.
    """

    name: str
    dataset: str
    config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str]
    files: Mapping[str, str]
    optional: tuple[str, ...] = ()
    record: Callable[[Mapping[str, Any], str], Mapping[str, Any] | None]
    licence: str
    source: str
    ood_splits: tuple[str, ...] = ()
    label_names: tuple[str, ...] | None = None
    repeated_choices: bool = False
    note: str | None = None

    def __call__(
        self,
        folder: str | Path | None = None,
        *,
        validation_size: float | int = 0.1,
        seed: int = 0,
        label_answers: LabelAnswers = "names",
    ) -> Task:
        """Load it (see `TaskLoader`)."""
        sources = self._from_hub() if folder is None else self._from_folder(Path(folder))
        names = self.label_names
        if names is None and folder is not None and (Path(folder) / "label_names.json").is_file():
            names = tuple(read_label_names(Path(folder) / "label_names.json"))
        if self.note:
            logger.info("%s: %s", self.name, self.note)
        task = build_task(
            self.name,
            sources,
            label_names=names,
            ood_splits=[split for split in self.ood_splits if split in sources],
            label_answers=label_answers,
            repeated_choices=self.repeated_choices,
            licence=self.licence,
            source=f"{self.source}; from {'the hub, ' + self.dataset if folder is None else 'a local folder'}",
            notes=[self.note] if self.note else [],
        )
        return note_overlap(cut_validation(task, size=validation_size, seed=seed))

    def _from_folder(self, folder: Path) -> dict[str, Records]:
        if not folder.is_dir():
            raise ValueError(f"task {self.name!r}: there is no folder {folder}")
        absent = [f for split, f in self.files.items() if not (folder / f).is_file() and split not in self.optional]
        if absent:
            raise ValueError(f"task {self.name!r}: the folder {folder} lacks {', '.join(absent)}")
        return {split: read_jsonl(folder / f) for split, f in self.files.items() if (folder / f).is_file()}

    def _from_hub(self) -> dict[str, Records]:
        data = read_dataset(self.dataset, self.config, revision=self.revision)
        sources = {}
        for split, there in self.splits.items():
            if there not in data:
                raise ValueError(f"{self.dataset}: no split {there!r}; it has {', '.join(data)}")
            names = {c: f.names for c, f in data[there].features.items() if hasattr(f, "int2str")}
            named = ({**row, **{c: names[c][row[c]] for c in names if row[c] >= 0}} for row in data[there])
            records = [record for row in named if (record := self.record(row, split)) is not None]
            sources[split] = Records(where=f"{self.dataset}:{there}", rows=records, unit="row")
        return sources
