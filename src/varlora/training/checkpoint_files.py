"""Trainers' checkpoints that say whether they are whole, and the newest one that is.

    checkpoint-30/checkpoint_files.json
        format             1
        resumable          whether the optimizer, the schedule and the generators' states are in it
        processes          that trained, and
        rows_per_step      that all of them together read in one step
        files              by name: size and SHA-256 of every other file

While a save goes on the file is there without `files`; it is written last, in one rename, after the others were flushed
to the disk. So a kill leaves a save that is known to be interrupted, and a file that was cut short, changed or lost
since is found before anything is read from the checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from varlora.io.files import misfit_of, parse_json, read_bytes, sha256_of
from varlora.io.folders import atomic_file, flush

logger = logging.getLogger(__name__)

CHECKPOINT_FILES = "checkpoint_files.json"
_FORMAT = 1
_MOST_BYTES = 1 << 24
_STATE = "trainer_state.json"


class DamagedCheckpointError(ValueError):
    """There are checkpoints, and training can go on from none of them."""


class _Entry(TypedDict):
    size: int
    sha256: str


class _Content(TypedDict):
    """Content of checkpoint_files.json."""

    format: int
    resumable: bool
    processes: int
    rows_per_step: int
    files: dict[str, _Entry] | None


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """What a checkpoint says of itself.

    Attributes:
        files: by name, size in bytes and SHA-256; None while it is being saved.
        resumable: whether training can go on from it; without an optimizer's state it cannot.
        processes: that trained.
        rows_per_step: training rows of one step, of all processes together.
    """

    files: Mapping[str, _Entry] | None
    resumable: bool
    processes: int
    rows_per_step: int


def last_whole_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of a trainer's output folder that is whole: every file there, of its size and SHA-256.

    Newer ones that are not are named in a warning. The trainers of this package write what is checked
    (`checkpoint_files.json`), and go on from this checkpoint by `train(resume_from_checkpoint=True)`.

    Args:
        folder: the trainer's `output_dir`.

    Returns:
        The checkpoint; None where none has ever been saved to its end.

    Raises:
        DamagedCheckpointError: there are checkpoints, and none is whole.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (20, 30):
        ...     begin_checkpoint(folder / f"checkpoint-{step}", processes=1, rows_per_step=8)
        ...     _ = (folder / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"a state")
        ...     finish_checkpoint(folder / f"checkpoint-{step}")
        >>> last_whole_checkpoint(folder).name
        'checkpoint-30'
        >>> _ = (folder / "checkpoint-30" / "optimizer.pt").write_bytes(b"a st")
        >>> last_whole_checkpoint(folder).name
        'checkpoint-20'
    """
    passed_over: list[str] = []
    interrupted = True
    for checkpoint in reversed(checkpoints_in(Path(folder))):
        damage = damage_of(checkpoint)
        if damage is None:
            if passed_over:
                logger.warning("%s; going on from %s", "; ".join(passed_over), checkpoint.name)
            return checkpoint
        passed_over.append(f"{checkpoint.name} is {damage}")
        interrupted = interrupted and is_interrupted(checkpoint)
    if interrupted:
        if passed_over:
            logger.warning("%s, and there is no other checkpoint in %s", "; ".join(passed_over), folder)
        return None
    raise DamagedCheckpointError(
        f"no checkpoint in {folder} is whole: {'; '.join(passed_over)}. Copy a whole one there, or begin "
        "again without them (varlora train: --overwrite)."
    )


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders checkpoint-N of a trainer's output folder, in the order of N."""
    named = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in named if path.is_dir()), key=_step)


def damage_of(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint, "damaged (optimizer.pt: 1,024 of 80,312 bytes)"; None if it can.

    Every file is read. The best checkpoint so far, which training may end with, must be whole, too.
    """
    if (damage := _own_damage(checkpoint)) is not None:
        return damage
    try:
        best = _best_of(checkpoint)
    except (ValueError, AttributeError, RecursionError) as error:
        return f"damaged ({_STATE}: {error})"
    if best is None or best.name == checkpoint.name:
        return None
    if not best.is_dir():
        return f"of no use without the best checkpoint so far, {best}, which is not there"
    damage = _own_damage(best)
    return None if damage is None else f"of no use without the best checkpoint so far, {best}, which is {damage}"


def listed_damage(checkpoint: Path, *names: str) -> str | None:
    """Which of these files is not as the checkpoint lists it; None where all are, or it lists none.

    For whoever reads single files, as a posterior's.
    """
    try:
        own = read_checkpoint_files(checkpoint)
    except ValueError as error:
        return f"damaged ({error})"
    listed = own.files or {} if own is not None else {}
    return next(filter(None, (_file_damage(checkpoint / n, n, listed[n]) for n in names if n in listed)), None)


def read_checkpoint_files(checkpoint: Path) -> CheckpointFiles | None:
    """What a checkpoint says of itself; None where it says nothing, as one of another trainer.

    Raises:
        ValueError: checkpoint_files.json is damaged.
    """
    file = checkpoint / CHECKPOINT_FILES
    if not file.is_file():
        return None
    try:
        values = parse_json(read_bytes(file, largest=_MOST_BYTES))
        if (misfit := misfit_of(values, _Content)) is not None:
            raise ValueError(misfit)
    except FileNotFoundError:  # removed meanwhile
        return None
    except ValueError as error:
        raise ValueError(f"{CHECKPOINT_FILES}: {error}") from error
    inside = [not Path(name).is_absolute() and ".." not in Path(name).parts for name in values["files"] or ()]
    if not all(inside) or values["format"] != _FORMAT:
        raise ValueError(f"{CHECKPOINT_FILES} is not of format {_FORMAT}")
    return CheckpointFiles(**{name: values[name] for name in CheckpointFiles.__dataclass_fields__})


def begin_checkpoint(checkpoint: Path, *, processes: int, rows_per_step: int, resumable: bool = True) -> None:
    """Marks a checkpoint as one that is being saved; see `CheckpointFiles`."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    values = {"format": _FORMAT, "resumable": resumable, "processes": processes, "rows_per_step": rows_per_step}
    _write(checkpoint, {**values, "files": None})


def finish_checkpoint(checkpoint: Path) -> None:
    """Marks a checkpoint as whole, with the files that it holds now."""
    flush(checkpoint)
    values = json.loads((checkpoint / CHECKPOINT_FILES).read_bytes())
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != CHECKPOINT_FILES)
    values["files"] = {
        path.relative_to(checkpoint).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in files
    }
    _write(checkpoint, values)


def remove_old_checkpoints(newest: Path, *, best: Path | None, limit: int | None) -> None:
    """Removes checkpoints beside a whole one until `limit` are left: first what is of no use, then the oldest.

    Neither the newest, which has just been saved, nor the best is ever removed, nor a folder without
    checkpoint_files.json.

    Args:
        newest: the checkpoint that has just been saved.
        best: the best so far.
        limit: how many may be left; None or 0: all.
    """
    if not limit:
        return
    ours = [path for path in checkpoints_in(newest.parent) if (path / CHECKPOINT_FILES).is_file()]
    kept = {newest.name} | ({best.name} if best is not None else set())
    useless = [path for path in ours if is_interrupted(path) or _step(path) > _step(newest)]
    order = [*useless, *(path for path in ours if path not in useless)]
    surplus = max(0, len(ours) - max(limit, len(kept)))
    for path in [path for path in order if path.name not in kept][:surplus]:
        shutil.rmtree(path, ignore_errors=True)


def _own_damage(checkpoint: Path) -> str | None:
    """`damage_of`, without the best checkpoint."""
    try:
        own = read_checkpoint_files(checkpoint)
    except ValueError as error:
        return f"damaged ({error})"
    if is_interrupted(checkpoint):
        return "half-written: its save was interrupted"
    if own is None or own.files is None:
        return f"without {CHECKPOINT_FILES}, so that nothing says whether it is whole"
    if not own.resumable:
        return "without the optimizer's state (save_only_model=True)"
    return next(filter(None, (_file_damage(checkpoint / name, name, entry) for name, entry in own.files.items())), None)


def _file_damage(path: Path, name: str, entry: _Entry) -> str | None:
    if not path.is_file():
        return f"damaged ({name} is missing)"
    if (size := path.stat().st_size) != entry["size"]:
        return f"damaged ({name}: {size:,} of {entry['size']:,} bytes)"
    return f"damaged ({name} was changed: its SHA-256 differs)" if _sha256(path) != entry["sha256"] else None


def is_interrupted(checkpoint: Path) -> bool:
    """Whether the save of a checkpoint is known not to have ended."""
    try:
        own = read_checkpoint_files(checkpoint)
    except ValueError:
        return False
    if own is not None:
        return own.files is None
    return all(path.name.startswith(f".{CHECKPOINT_FILES}.new-") for path in checkpoint.glob("*"))  # it had just begun


def _best_of(checkpoint: Path) -> Path | None:
    """The best checkpoint so far, as the trainer's state names it."""
    if not (checkpoint / _STATE).is_file():
        return None
    best = json.loads((checkpoint / _STATE).read_bytes()).get("best_model_checkpoint")
    return Path(str(best)) if best is not None else None


def _write(checkpoint: Path, values: Mapping[str, Any]) -> None:
    with atomic_file(checkpoint / CHECKPOINT_FILES, overwrite=True) as file:
        file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256_of(file)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
