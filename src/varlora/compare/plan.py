"""A plan of runs: models × tasks × methods × seeds, and the rows of the table that each training gives."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from varlora.compare.cell import GENERATED, Cell, make_cell
from varlora.compare.code_version import code_version
from varlora.compare.content import Generated
from varlora.compare.variant import Variant
from varlora.io.nearest import nearest
from varlora.runs.config import RunConfig
from varlora.runs.data import task_folder
from varlora.runs.run import method_of
from varlora.tasks import TASKS

logger = logging.getLogger(__name__)

Over = Literal["temperature", "prune", "samples"]
CELL = ("model", "task", "method", "seed")
"""What a cell is named by."""
SOURCES = ("task", "train_file", "dataset_name")
"""Settings that say where a task's rows come from; without any, the task's key is the name of a known task."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Variants that differ in one field, for a frontier.

    Attributes:
        over: the field.
        values: of it.
        variant: the other fields.
    """

    over: Over
    values: tuple[Any, ...]
    variant: Variant = field(default_factory=Variant)

    def variants(self) -> tuple[Variant, ...]:
        """One for each value.

        Raises:
            ValueError: a value does not fit.

        Example:
            >>> [v.config.temperature for v in Curve(over="temperature", values=(0.5, 2)).variants()]
            [0.5, 2.0]
        """
        return tuple(Variant.from_dict({**self.variant.to_dict(), self.over: value}) for value in self.values)

    def to_dict(self) -> dict[str, Any]:
        """As a plan's file has it."""
        others = {n: v for n, v in self.variant.to_dict().items() if n != self.over and v is not None}
        return {"over": self.over, "values": list(self.values), **others}


@dataclass(frozen=True, kw_only=True)
class MethodPlan:
    """A way to train, and what is made of each training.

    Attributes:
        name: of the plan.
        settings: `RunConfig`'s fields.
        rows: rows of the tables: label → how to predict.
        curves: for the frontiers.
    """

    name: str
    settings: Mapping[str, Any]
    rows: Mapping[str, Variant] = field(default_factory=dict)
    curves: Sequence[Curve] = ()

    def variants(self) -> tuple[Variant, ...]:
        """All of rows and curves, each once."""
        every = [*self.rows.values(), *(variant for curve in self.curves for variant in curve.variants())]
        return tuple({variant.key: variant for variant in every}.values())

    def to_dict(self) -> dict[str, Any]:
        """As a plan's file has it."""
        return {
            "settings": dict(self.settings),
            "rows": {label: variant.given for label, variant in self.rows.items()},
            "curves": [curve.to_dict() for curve in self.curves],
        }


@dataclass(frozen=True, kw_only=True)
class Override:
    """Settings of some cells.

    Attributes:
        when: "model", "task", "method", "seed" → the values it holds for; all of them must fit.
        settings: `RunConfig`'s fields.
    """

    when: Mapping[str, tuple[Any, ...]]
    settings: Mapping[str, Any]

    def holds(self, **cell: Any) -> bool:
        """Whether it holds for a cell.

        Example:
            >>> Override(when={"task": ("a", "b")}, settings={}).holds(task="b", seed=1)
            True
        """
        return all(cell[name] in values for name, values in self.when.items())

    def to_dict(self) -> dict[str, Any]:
        """As a plan's file has it."""
        return {"when": {n: list(values) for n, values in self.when.items()}, "settings": dict(self.settings)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `varlora compare` runs. `read_plan` reads one from a file, and checks it.

    Attributes:
        name: of the plan.
        output_dir: the folder of its cells.
        reference: label of the row that the others are compared with.
        seeds: one training of everything each.
        models, tasks: name → settings; a task's may have `folder` and `generated` too.
        methods: by name.
        settings: of all cells.
        overrides: settings of some cells; later ones win.
        data: folder that holds the named tasks' folders; None reads them from the hub.
        code_versions: other versions of the code whose cells are taken as they are.
        metrics: names of metrics that the tables have besides those that every table has.
        note, source: free text.
    """

    name: str
    output_dir: Path
    reference: str
    seeds: tuple[int, ...]
    models: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, MethodPlan]
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[Override] = ()
    data: Path | None = None
    code_versions: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    note: str = ""
    source: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The tables' rows, in order."""
        return tuple(label for method in self.methods.values() for label in method.rows)

    def cells(self, only: Sequence[str] = ()) -> tuple[Cell, ...]:
        """Every run, the first seed's first.

        Where this version of the code has not run a cell and one of `code_versions` has, that one's is taken.

        Args:
            only: filters, see `chosen`; a cell that they do not let through is left out if its data are not there.

        Raises:
            ValueError: a cell's settings, or the data that they name, do not fit; the message names the cell.
        """
        filters = [_filter(text) for text in only]
        found, left_out = [], dict[str, str]()
        names = itertools.product(self.seeds, self.models, self.tasks, self.methods)
        for seed, model, task, method in names:
            place = {"model": model, "task": task, "method": method, "seed": str(seed)}
            try:
                found.append(self.cell(model, task, method, seed))
            except ValueError as error:
                if all(place[name] in wanted for name, wanted in filters):
                    raise
                left_out.setdefault(task, str(error))
        for why in left_out.values():
            logger.info("left out: %s", why)
        return tuple(found)

    def cell(self, model: str, task: str, method: str, seed: int) -> Cell:
        """One run.

        Args:
            model, task, method: names of the plan.
            seed: of the training.

        Raises:
            ValueError: its settings, or the data that they name, do not fit.
        """
        try:
            config, generated = self._config(model, task, method, seed)
            method_of(config)  # whether the method takes its options
            made = make_cell(
                model=model,
                task=task,
                method=method,
                config=config,
                output_dir=self.output_dir,
                code_version=code_version(config.method, config.task),
                variants=self.methods[method].variants(),
                generated=generated,
            )
        except ValueError as error:
            raise ValueError(f"{model} / {task} / {method} / seed {seed}: {error}") from error
        if not made.trained:
            for version in self.code_versions:
                if (other := made.made_by(version)).trained and other.same_settings():
                    return other
        return made

    def to_dict(self) -> dict[str, Any]:
        """As a plan's file has it; `read_plan` reads it back."""
        return {
            "name": self.name,
            "note": self.note,
            "source": self.source,
            "output_dir": str(self.output_dir),
            "data": str(self.data) if self.data is not None else None,
            "code_versions": list(self.code_versions),
            "metrics": list(self.metrics),
            "reference": self.reference,
            "seeds": list(self.seeds),
            "settings": dict(self.settings),
            "models": {name: dict(settings) for name, settings in self.models.items()},
            "tasks": {name: dict(settings) for name, settings in self.tasks.items()},
            "methods": {name: method.to_dict() for name, method in self.methods.items()},
            "overrides": [override.to_dict() for override in self.overrides],
        }

    def _config(self, model: str, task: str, method: str, seed: int) -> tuple[RunConfig, Generated | None]:
        """A cell's settings, and the task to generate for them."""
        merged = {**self.settings, **self.models[model], **self.tasks[task], **self.methods[method].settings}
        for override in self.overrides:
            if override.holds(model=model, task=task, method=method, seed=seed):
                merged |= override.settings
        folder, sizes = merged.pop("folder", None), merged.pop("generated", None)
        data_seed = merged.pop("data_seed", 0)
        merged["data_seed"] = seed if data_seed == "seed" else data_seed
        generated = None
        if sizes is not None:
            generated = Generated(**{**sizes, "seed": sizes.get("seed", 0) + merged["data_seed"]})
            merged |= generated.files(self.output_dir / GENERATED)
        elif not any(merged.get(source) is not None for source in SOURCES):
            merged["task"] = task
        name = merged.get("task")
        if name is not None and name not in TASKS:
            raise ValueError(f"unknown task {name!r}; {nearest(name, TASKS)} A task of your own needs train_file.")
        if name is not None and self.data is not None and "task_dir" not in merged:
            merged["task_dir"] = str(self._in_data(folder or task_folder(name)))
        if self.data is not None and merged.get("shift_tasks") and "shift_task_dir" not in merged:
            merged["shift_task_dir"] = str(self.data)
        settings: dict[str, Any] = {
            name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in merged.items()
        }
        return RunConfig.from_dict(settings | {"seed": seed, "output_dir": "-"}), generated

    def _in_data(self, name: str) -> Path:
        assert self.data is not None
        if not (self.data / name).is_dir():
            there = sorted(path.name for path in self.data.iterdir() if path.is_dir()) if self.data.is_dir() else []
            raise ValueError(
                f"there is no folder {name} in {self.data}; {nearest(name, there) if there else 'it holds none.'} "
                "A task's `folder` says what its folder is called."
            )
        return self.data / name


def chosen(cells: Sequence[Cell], only: Sequence[str]) -> tuple[Cell, ...]:
    """The cells that every filter lets through.

    Args:
        cells: all.
        only: filters such as "task=arc_easy" or "seed=0,1", by model, task, method and seed.

    Raises:
        ValueError: a filter names something that no cell has.
    """
    left = tuple(cells)
    for text in only:
        name, wanted = _filter(text)
        known = list(dict.fromkeys(str(getattr(cell, name)) for cell in cells))
        if unknown := [value for value in wanted if value not in known]:
            raise ValueError(f"--only {text!r}: the plan has no {name} {unknown[0]!r}; {nearest(unknown[0], known)}")
        left = tuple(cell for cell in left if str(getattr(cell, name)) in wanted)
    return left


def _filter(text: str) -> tuple[str, list[str]]:
    """A filter's name and values."""
    name, equals, values = text.partition("=")
    if name not in CELL or not equals:
        near = nearest(name, CELL, otherwise="") if equals else ""
        ending = f"; {near}" if near else "."
        raise ValueError(f"--only {text!r} must be model=, task=, method= or seed= with names, comma-separated{ending}")
    return name, [value.strip() for value in values.split(",")]
