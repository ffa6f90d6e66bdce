"""How a named benchmark is loaded: from the hub, or from a local folder of JSONL files.

Each benchmark's own file (arc.py, sst2.py, ...) states its licence, source and splits in one `Benchmark`, and
how a row of the hub becomes one of the five shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from varlora.tasks.build import build_task
from varlora.tasks.description import Wording
from varlora.tasks.files import read_records
from varlora.tasks.final_answers import FinalAnswer
from varlora.tasks.hub import read_dataset
from varlora.tasks.jsonl import read_label_names
from varlora.tasks.overlap import SEEN, note_overlap
from varlora.tasks.own_prompts import OwnPrompt
from varlora.tasks.prompt_styles import ChoiceRole
from varlora.tasks.rows import LISTED_LABELS, LabelAnswers, Records
from varlora.tasks.splitting import VALIDATION_SIZE, cut_validation
from varlora.tasks.task import Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class TaskLoader(Protocol):
    """Loads a named task."""

    def __call__(
        self,
        folder: str | Path | None = None,
        *,
        validation_size: float | int = VALIDATION_SIZE,
        seed: int = 0,
        label_answers: LabelAnswers = "names",
        prompt_style: str = "varlora",
    ) -> Task:
        """Load the task.

        Args:
            folder: A local folder of JSONL files; None loads from the hub.
            validation_size: Fraction or number of training rows to cut where no validation split exists.
            seed: Decides which rows are cut.
            label_answers: How a causal LM names a class: "names" or "letters".
            prompt_style: How a causal LM is asked (`varlora.tasks.PROMPT_STYLES`).
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
        configs: Split name to its configuration on the hub, where that is not `config`.
        files: Split name to the file in a local folder, or to names of which the folder holds one; those marked
            optional may be missing. By default SPLIT.jsonl.
        folder: What its folder is called among those of other tasks; its name by default.
        optional: Splits of `files` that a folder may lack.
        record: Turns a row of the hub (class labels as their names) into a record; None leaves a row out of
            the split, which `note` must then state.
        licence: Licence of the data.
        source: Citation.
        ood_splits: Splits of out-of-scope rows.
        label_names: Class names in order, where the data do not bring them.
        repeated_choices: Whether a question may offer one wrong choice twice.
        choice_role: What a choice is to its question.
        record_fields: Columns of the hub that a local folder's rows hold, too, as text; `record` then reads those rows
            as well. Without them the folder's rows have one of the five shapes.
        final_answer: How the final answer of a completion is read, where completions are right or wrong.
        note: What a reader should know about the data as loaded.
        example: A made-up record, in the shape of the task's own; `varlora tasks` shows the prompts made of it.
        deviations: What published work does otherwise with these data.
    """

    name: str
    dataset: str
    config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str]
    configs: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    folder: str | None = None
    optional: tuple[str, ...] = ()
    record: Callable[[Mapping[str, Any], str], Mapping[str, Any] | None]
    licence: str
    source: str
    ood_splits: tuple[str, ...] = ()
    label_names: tuple[str, ...] | None = None
    repeated_choices: bool = False
    choice_role: ChoiceRole = "answer"
    record_fields: tuple[str, ...] = ()
    final_answer: FinalAnswer | None = None
    note: str | None = None
    example: Mapping[str, Any] | None = None
    deviations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.files:
            object.__setattr__(self, "files", {split: f"{split}.jsonl" for split in self.splits})

    def __call__(
        self,
        folder: str | Path | None = None,
        *,
        validation_size: float | int = VALIDATION_SIZE,
        seed: int = 0,
        label_answers: LabelAnswers = "names",
        prompt_style: str = "varlora",
        prompt: OwnPrompt | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Task:
        """Load it (see `TaskLoader`).

        Args:
            folder: See there, as all others but
            prompt: Words and turns of the user's own; a loader that has this argument has a `tokenizer`, too.
            tokenizer: For chats.
        """
        sources = self._from_hub() if folder is None else self._from_folder(Path(folder))
        names = self.label_names
        if names is None and folder is not None and (Path(folder) / "label_names.json").is_file():
            names = tuple(read_label_names(Path(folder) / "label_names.json"))
        if self.note:
            logger.info("%s: %s", self.name, self.note)
        wording = Wording.of(
            prompt, prompt_style=prompt_style, label_answers=label_answers, choice_role=self.choice_role
        )
        task = build_task(
            self.name,
            sources,
            label_names=names,
            ood_splits=[split for split in self.ood_splits if split in sources],
            repeated_choices=self.repeated_choices,
            wording=wording,
            tokenizer=tokenizer,
            final_answer=self.final_answer,
            licence=self.licence,
            source=f"{self.source}; from {'the hub, ' + self.dataset if folder is None else 'a local folder'}",
            notes=self._notes(sources),
        )
        return note_overlap(cut_validation(task, size=validation_size, seed=seed))

    def tests_only(self) -> Benchmark:
        """The same without training and validation rows, where the rows can be read without them.

        They are needed by a task that learns its classes' names from them. What is left has nothing to overlap with.

        Example:
            >>> from varlora.tasks import TASKS
            >>> list(TASKS["arc_easy"].tests_only().splits)
            ['test']
        """
        if self.label_names is None and "label" in (self.example or {}):
            return self
        return replace(
            self,
            splits={split: there for split, there in self.splits.items() if split not in SEEN},
            files={split: names for split, names in self.files.items() if split not in SEEN},
        )

    def example_task(self, prompt_style: str = "varlora") -> Task | None:
        """The example as a task of one row, in the split "example"; None without an example.

        Raises:
            ValueError: The style does not word this task.
        """
        if self.example is None:
            return None
        records = Records(where=f"the example of {self.name}", rows=[self.example])
        names = self.label_names
        if names is None and "label" in self.example:  # more than a prompt lists
            names = (self.example["label"], *(f"class {number}" for number in range(LISTED_LABELS)))
        wording = Wording(prompt_style=prompt_style, choice_role=self.choice_role)
        return build_task(self.name, {"example": records}, label_names=names, wording=wording)

    def _from_folder(self, folder: Path) -> dict[str, Records]:
        if not folder.is_dir():
            raise ValueError(f"task {self.name!r}: there is no folder {folder}")
        there: dict[str, Path] = {}
        absent = []
        for split, names in self.files.items():
            present = [folder / name for name in _listed(names) if (folder / name).is_file()]
            if len(present) > 1:
                raise ValueError(
                    f"task {self.name!r}: the folder {folder} holds {' and '.join(file.name for file in present)}, and "
                    f"each could be the split {split!r}; keep one of them"
                )
            if present:
                there[split] = present[0]
            elif split not in self.optional:
                absent.append(" or ".join(_listed(names)))
        if absent:
            raise ValueError(f"task {self.name!r}: the folder {folder} lacks {', '.join(absent)}")
        return {split: self._from_file(file, split) for split, file in there.items()}

    def _notes(self, sources: Mapping[str, Records]) -> list[str]:
        """The note, and which file a split was read from where it could have been another."""
        read = [
            f"{split}: read from {Path(records.where).name}"
            for split, records in sources.items()
            if records.unit == "line" and len(_listed(self.files[split])) > 1
        ]
        return [*([self.note] if self.note else []), *read]

    def _from_file(self, file: Path, split: str) -> Records:
        records = read_records(file)
        if not self.record_fields:
            return records
        for index, row in enumerate(records.rows):
            for column in self.record_fields:
                if column not in row:
                    raise ValueError(
                        f"{records.at(index)}: missing column {column!r}; task {self.name!r} "
                        f"has {'/'.join(self.record_fields)}"
                    )
                records.text(index, column)
        rows = [record for row in records.rows if (record := self.record(row, split)) is not None]
        return replace(records, rows=rows)

    def _from_hub(self) -> dict[str, Records]:
        loaded: dict[str | None, dict[str, datasets.Dataset]] = {}
        sources = {}
        for split, there in self.splits.items():
            config = self.configs.get(split, self.config)
            if config not in loaded:
                loaded[config] = read_dataset(self.dataset, config, revision=self.revision)
            data = loaded[config]
            if there not in data:
                raise ValueError(f"{self.dataset}: no split {there!r}; it has {', '.join(data)}")
            names = {c: f.names for c, f in data[there].features.items() if hasattr(f, "int2str")}
            named = ({**row, **{c: names[c][row[c]] for c in names if row[c] >= 0}} for row in data[there])
            records = [record for row in named if (record := self.record(row, split)) is not None]
            where = f"{self.dataset}:{there}" if config == self.config else f"{self.dataset}:{config}:{there}"
            sources[split] = Records(where=where, rows=records, unit="row")
        return sources


def _listed(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
