"""What a run reads, known by its content: where a file or a folder lies makes no difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from varlora.demo.data import task_texts
from varlora.io.files import open_regular
from varlora.io.folders import atomic_file
from varlora.runs.base_model import locate_model
from varlora.runs.config import PLACES, RunConfig
from varlora.runs.data import task_folder

READ_WHOLE = 64 * 2**20
BLOCK, BLOCKS = 2**16, 256
MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py", ".pt")
DATA_FILES = (".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".arrow")


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The demo's task of multiple choice, written with another world for each seed.

    Attributes:
        seed: of the world.
        train, validation, test: numbers of rows.
    """

    seed: int = 0
    train: int = 300
    validation: int = 150
    test: int = 500

    @property
    def digest(self) -> str:
        """A hash of the rows."""
        return to_hash(_generated_text(self))

    @property
    def in_words(self) -> str:
        """Where the rows come from, for people.

        Example:
            >>> Generated(seed=3, validation=0).in_words
            "generated: varlora's task of multiple choice (the demo's), seed 3; rows: 300 train, 0 validation, 500 test"
        """
        sizes = f"{self.train} train, {self.validation} validation, {self.test} test"
        return f"generated: varlora's task of multiple choice (the demo's), seed {self.seed}; rows: {sizes}"

    def files(self, folder: Path) -> dict[str, str]:
        """The settings that name the files, which `write` writes."""
        made = folder / f"{self.train}-{self.validation}-{self.test}-seed-{self.seed}-{self.digest[:8]}"
        sizes = {"train": self.train, "validation": self.validation, "test": self.test}
        return {f"{split}_file": str(made / f"{split}.jsonl") for split, size in sizes.items() if size}

    def write(self, folder: Path) -> None:
        """Writes the files of `files(folder)` where they are not there as they should be."""
        texts = _generated_text(self)
        for file in map(Path, self.files(folder).values()):
            if not file.is_file() or file.read_text(encoding="utf-8") != texts[file.stem]:
                with atomic_file(file, overwrite=True) as new:  # another process may be reading it
                    new.write_text(texts[file.stem], encoding="utf-8")


def path_settings(config: RunConfig) -> dict[str, Path]:
    """The settings that name a local file or folder that is read.

    Args:
        config: the settings. `model_name_or_path` is local if the model is on this machine, and `gguf_file` is a part
            of it; `dataset_name` is if there is a folder of that name.

    Raises:
        ValueError: the model is in a package that is not installed, or is not in the folder.
    """
    model = locate_model(config.model_name_or_path, config.gguf_file).local
    paths = {"model_name_or_path": model} if model is not None else {}
    for name, value in config.to_dict().items():
        if not isinstance(value, str) or name in (*PLACES, "gguf_file"):
            continue
        if name.endswith(("_dir", "_file")) or (name == "dataset_name" and Path(value).is_dir()):
            paths[name] = Path(value)
    return paths


def contents_of(config: RunConfig, left_out: Collection[str] = ()) -> dict[str, str]:
    """Of each setting that names a local file or folder: a hash of what is there.

    Args:
        config: the settings.
        left_out: settings that are not looked at.

    Raises:
        ValueError: a file or folder is not there.
    """
    digests = {}
    for name, path in path_settings(config).items():
        if name in left_out:
            continue
        if not path.exists():
            raise ValueError(f"{name} is {str(path)!r}, and there is no such file or folder.")
        if name == "shift_task_dir":
            names = [task.strip() for task in (config.shift_tasks or "").split(",")]
            parts = {task: digest_of(path / task_folder(task), DATA_FILES) for task in names}
            digests[name] = to_hash(parts)
        else:
            digests[name] = digest_of(path, MODEL_FILES if name == "model_name_or_path" else DATA_FILES)
    return digests


def digest_of(path: Path, endings: tuple[str, ...]) -> str:
    """A hash of a file, or of a folder's files that have one of the endings and are not hidden, by name and content.

    A file above 64 MiB is known by its size and 256 blocks of 64 KiB, spread evenly from its first byte to its last.

    Args:
        path: the file or folder.
        endings: which files of a folder count.

    Raises:
        ValueError: there is neither.
    """
    if path.is_file():
        return _digest_of_file(path)
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}.")
    files = [
        file
        for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix())
        if file.is_file()
        and file.suffix in endings
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    lines = [f"{file.relative_to(path).as_posix()}\0{_digest_of_file(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def to_hash(value: Mapping[str, Any]) -> str:
    """A hash of a JSON object."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of_file(file: Path) -> str:
    stat = file.stat()
    return _cached_digest(str(file.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _cached_digest(file: str, size: int, changed: int) -> str:
    digest = hashlib.sha256(f"{size}\0".encode())
    with open_regular(file) as stream:
        if size <= READ_WHOLE:
            digest.update(stream.read())
        else:
            for number in range(BLOCKS):
                stream.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _generated_text(task: Generated) -> Mapping[str, str]:
    return task_texts(task.seed, train=task.train, validation=task.validation, test=task.test)
