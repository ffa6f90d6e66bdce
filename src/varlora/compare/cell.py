"""One run of a plan: its settings, its key, its folder, and how far it has come."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from varlora.compare.content import Generated, contents_of, path_settings, to_hash
from varlora.compare.variant import Variant
from varlora.compare.variant_files import is_complete
from varlora.io.folders import find_interrupted
from varlora.io.yaml_files import load_yaml
from varlora.runs.checkpoints import checkpoints_of, is_unfinished, remove_left_over
from varlora.runs.config import PLACES, RunConfig
from varlora.runs.folder import CONFIG, METRICS, is_run

State = Literal["done", "partial", "unfinished", "failed", "missing"]
GENERATED = "generated"
"""Folder of an output folder's generated tasks."""
FROZEN_LAYERS = "frozen_layers"
"""Folder of the states that an output folder's cells share."""


class CellFile(TypedDict):
    """A cell in cells.json."""

    model: str
    task: str
    method: str
    seed: int
    config: dict[str, Any]
    identity: str
    code_version: str
    folder: str
    variants: list[dict[str, Any]]
    generated: dict[str, int] | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of one model on one task with one seed, and the ways to predict with it.

    Attributes:
        model, task, method: names of the plan.
        seed: of the training.
        config: its settings, with `output_dir`.
        identity: a hash of every setting that is no place to write to, with local data and models by their content.
        code_version: of the varlora that makes it, or has made it.
        folder: its run folder.
        variants: the ways to predict that the plan asks for.
        generated: the task to write before the run, if the plan asks for a generated one.
    """

    model: str
    task: str
    method: str
    seed: int
    config: RunConfig
    identity: str
    code_version: str
    folder: Path
    variants: tuple[Variant, ...]
    generated: Generated | None = None

    @property
    def key(self) -> str:
        """What the folder's name ends with: equal for runs that must give equal numbers."""
        return f"{self.identity}-{self.code_version}"

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.model} / {self.task} / {self.method} / seed {self.seed}"

    @property
    def error_file(self) -> Path:
        """Where the traceback of a failed try is."""
        return self.folder.with_name(f"{self.folder.name}.error.txt")

    def state(self) -> State:
        """How far it has come.

        "done"; "partial": the run is there, and some of its variants are missing; "failed": the last try failed;
        "unfinished": there are checkpoints to go on from; "missing".
        """
        trained = self.trained
        if trained and is_complete(self.folder, self.variants):
            return "done"
        if self.error_file.is_file():
            return "failed"
        if trained:
            return "partial"
        return "unfinished" if is_unfinished(checkpoints_of(self.config)) else "missing"

    @property
    def trained(self) -> bool:
        """Whether the run is there; it appears whole or not at all."""
        return is_run(self.folder) and (self.folder / METRICS).is_file()

    def prepare(self) -> None:
        """Writes the generated task, and removes what a killed run left half-written.

        Nothing else may be running the cell.
        """
        if self.generated is not None:
            self.generated.write(self.folder.parents[2] / GENERATED)
        for left in find_interrupted(self.folder):
            shutil.rmtree(left)
        if self.trained:
            remove_left_over(self.config)

    def others(self) -> list[str]:
        """Versions of the code that have made this cell too, with the same settings."""
        folder = self.folder.parent
        start = self.folder.name.removesuffix(self.code_version)
        versions = [
            name.removeprefix(start)
            for name in sorted(path.name for path in folder.glob(f"{start}*") if is_run(path))
            if name != self.folder.name
        ]
        return [version for version in versions if self.made_by(version).same_settings()]

    def made_by(self, version: str) -> Cell:
        """The same cell as another version of the code makes it."""
        folder = self.folder.with_name(self.folder.name.removesuffix(self.code_version) + version)
        return replace(self, code_version=version, folder=folder, config=replace(self.config, output_dir=str(folder)))

    def same_settings(self) -> bool:
        """Whether the run in the folder had these settings where both know them: a default may have changed since."""
        there = load_yaml(self.folder / CONFIG)
        paths = {*PLACES, *path_settings(self.config)}
        return all(there[n] == v for n, v in self.config.to_dict().items() if n in there and n not in paths)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {
            "config": self.config.to_dict(),
            "folder": str(self.folder),
            "variants": [variant.to_dict() for variant in self.variants],
            "generated": dataclasses.asdict(self.generated) if self.generated is not None else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cell:
        """The cell that `to_dict` gave."""
        where = f"cell {values['folder']}"
        return cls(
            **{
                **values,
                "config": RunConfig.of_finished(values["config"]),
                "folder": Path(values["folder"]),
                "variants": tuple(Variant.from_dict(v, where=where) for v in values["variants"]),
                "generated": Generated(**values["generated"]) if values["generated"] is not None else None,
            }
        )


def make_cell(
    *,
    model: str,
    task: str,
    method: str,
    config: RunConfig,
    output_dir: Path,
    code_version: str,
    variants: Sequence[Variant],
    generated: Generated | None = None,
) -> Cell:
    """A cell with its key and its folder, OUTPUT_DIR/MODEL/TASK/METHOD-seed-SEED-SETTINGS-CODE.

    Args:
        model, task, method: names of the plan.
        config: the settings; their `output_dir` is replaced, the files of a generated task are filled in, and the
            states of frozen layers are shared, in OUTPUT_DIR/frozen_layers unless the settings name a folder.
        output_dir: the plan's folder.
        code_version: of this varlora.
        variants: the ways to predict with it.
        generated: the task, if it is to be generated.
    """
    identity = identity_of(config, generated)
    folder = output_dir / model / task / f"{method}-seed-{config.seed}-{identity}-{code_version}"
    if config.cache_frozen_layers and config.frozen_layers_dir is None:
        config = replace(config, frozen_layers_dir=str(output_dir / FROZEN_LAYERS))
    return Cell(
        model=model,
        task=task,
        method=method,
        seed=config.seed,
        config=replace(config, output_dir=str(folder)),
        identity=identity,
        code_version=code_version,
        folder=folder,
        variants=tuple(variants),
        generated=generated,
    )


def identity_of(config: RunConfig, generated: Generated | None = None) -> str:
    """A hash of every setting that is no place to write to; what lies on this machine counts by its content.

    Settings at their default are left out, so that a new option does not change it; a changed default is another
    version of the code.

    Args:
        config: the settings.
        generated: the task whose files the settings name, which need not be there yet.
    """
    made = set(generated.files(Path())) if generated is not None else set()
    contents: dict[str, Any] = {name: {"content": digest} for name, digest in contents_of(config, made).items()}
    left_out = (*PLACES, *(["gguf_file"] if "model_name_or_path" in contents else []))
    given = {name: value for name, value in config.given().items() if name not in left_out}
    if generated is not None:
        contents |= dict.fromkeys(made) | {"generated": generated.digest}
    return to_hash(given | contents)[:12]
