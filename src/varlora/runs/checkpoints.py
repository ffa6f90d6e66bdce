"""The folder of a run's checkpoints, OUTPUT_DIR.checkpoints: whose it is, and what it may lose.

Its file `fingerprint` says that it is a run's, and of which settings and rows; it is written before anything else in
the folder and removed after. A folder without it is somebody else's, and is never written to nor removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import uuid
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import TrainerCallback

from varlora.io.files import MEBIBYTE, parse_json, read_text
from varlora.io.folders import atomic_file, check_can_be_folder
from varlora.posterior.folder import MANIFEST
from varlora.runs.config import RunConfig
from varlora.training.checkpoint_files import checkpoints_in, is_interrupted, last_whole_checkpoint

logger = logging.getLogger(__name__)

FINGERPRINT = "fingerprint"
OWNER = "owner"
"""The file that names the process whose run it is: the last that has begun or gone on."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What the checkpoints are of.

    Attributes:
        settings: a hash (`RunConfig.fingerprint`).
        rows: a hash of the encoded training and validation rows; None where an earlier version of varlora began.
        processes: that train; None likewise.
    """

    settings: str
    rows: str | None
    processes: int | None


def this_process() -> PartialState:
    """This process among those that train the run."""
    return PartialState(cpu=not torch.accelerator.is_available())


def checkpoints_of(config: RunConfig) -> Path:
    """Where a run keeps its checkpoints until it has ended."""
    target = Path(config.output_dir)
    if target.name in ("", ".."):
        target = Path(os.path.realpath(target))
    return target.with_name(f"{target.name}.checkpoints")


def is_unfinished(checkpoints: Path) -> bool:
    """Whether a folder holds a checkpoint whose save has ended, or a finished part of a method of several trainings."""
    every = [path for folder in (checkpoints, *checkpoints.glob("*")) for path in checkpoints_in(folder)]
    done = any(checkpoints.glob(f"**/finished/{MANIFEST}"))
    return done or not all(map(is_interrupted, every))


def can_resume(checkpoints: Path, config: RunConfig) -> bool:
    """Whether a run with these settings can go on from what is there; nothing is raised."""
    try:
        fingerprint = read_fingerprint(checkpoints)
        for folder in [checkpoints, *checkpoints.glob("*")]:
            last_whole_checkpoint(folder)
    except ValueError as error:
        logger.warning("%s", error)
        return False
    if fingerprint is None or fingerprint.settings != config.fingerprint:
        return False
    return fingerprint.processes == this_process().num_processes and is_unfinished(checkpoints)


def read_fingerprint(checkpoints: Path) -> Fingerprint | None:
    """Whose checkpoints these are; None where there are none, not even somebody else's.

    Raises:
        ValueError: the folder is not a run's, or its fingerprint is damaged.
    """
    check_can_be_folder(checkpoints)
    file = checkpoints / FINGERPRINT
    # A kill before the fingerprint was in place leaves at most its hidden sibling.
    others = [p.name for p in checkpoints.glob("*") if not p.name.startswith(f".{FINGERPRINT}.new-")]
    if not others:
        return None
    if not file.is_file():
        raise ValueError(
            f"{checkpoints} is where the run would keep its checkpoints, and it is somebody else's folder (it holds "
            f"{', '.join(sorted(others)[:4])}, and no {FINGERPRINT} of a run). Rename it, or choose another output_dir."
        )
    try:
        text = read_text(file, largest=MEBIBYTE)
        if re.fullmatch("[0-9a-f]{16}", text):
            return Fingerprint(settings=text, rows=None, processes=None)
        values = parse_json(text)
        return Fingerprint(**{name: values[name] for name in Fingerprint.__dataclass_fields__})
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"{file} is damaged ({file.stat().st_size} bytes), so that nothing says of which settings and rows these "
            f"checkpoints are. Put a copy of it there, or delete {checkpoints} yourself to begin again."
        ) from error


def check_checkpoints(config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuses a run that may neither begin nor go on; called before anything is loaded.

    Raises:
        ValueError: the folder of the checkpoints is not a run's; there is an unfinished run, which is neither to be
            resumed nor replaced, or had other settings.
    """
    checkpoints = checkpoints_of(config)
    begun = read_fingerprint(checkpoints)
    if begun is None or not is_unfinished(checkpoints):
        if resume:
            logger.warning("there is no checkpoint in %s; starting from the beginning", checkpoints)
        return
    if not resume:
        if not overwrite:
            raise ValueError(
                f"an unfinished run is in {checkpoints}. Go on with it by --resume, or start afresh with --overwrite."
            )
        return
    if begun.rows is None and begun.processes is None:
        raise ValueError(
            f"the unfinished run in {checkpoints} was begun by an earlier version of varlora, whose checkpoints do not "
            "say whether they are whole. Finish it with that version, choose another output_dir, or start afresh with "
            "--overwrite."
        )
    if begun.settings != config.fingerprint:
        without = replace(config, temperature_scaling=False)
        repeat = (
            "It was begun without a temperature, which its method now fits unasked: add --temperature_scaling false"
            if begun.settings == without.fingerprint and config.temperature_scaling is None
            else "Repeat its settings"
        )
        raise ValueError(
            f"the unfinished run in {checkpoints} had other settings, so it cannot be resumed with these. {repeat}, "
            "choose another output_dir, or start afresh with --overwrite."
        )
    if begun.processes != (now := this_process().num_processes):
        raise ValueError(
            f"the unfinished run in {checkpoints} was trained by {begun.processes} processes, and this one is by "
            f"{now}: its steps would be others. Start as many, or start afresh with --overwrite."
        )


def claim_checkpoints(checkpoints: Path, config: RunConfig, *, rows: str, resume: bool) -> bool:
    """Makes the folder this run's, on every process.

    Args:
        checkpoints: the folder.
        config: the settings.
        rows: a hash of the encoded rows (`digest_of`).
        resume: go on from what is there.

    Returns:
        Whether there is something to go on from.

    Raises:
        ValueError: the rows are not those with which the unfinished run began; the folder is not a run's.
    """
    processes = this_process()
    former = read_fingerprint(checkpoints)
    goes_on = resume and former is not None and is_unfinished(checkpoints)
    processes.wait_for_everyone()  # before one of them changes anything
    if not goes_on:
        if processes.is_main_process:
            checkpoints.mkdir(parents=True, exist_ok=True)
            made = Fingerprint(settings=config.fingerprint, rows=rows, processes=processes.num_processes)
            with atomic_file(checkpoints / FINGERPRINT, overwrite=True) as file:
                file.write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")
        processes.wait_for_everyone()
    elif former is not None and former.rows not in (None, rows):
        raise ValueError(
            f"the training or validation rows have changed since the unfinished run in {checkpoints} began, so it "
            "cannot go on. Put the former rows back, or start afresh with --overwrite."
        )
    if processes.is_main_process:
        with atomic_file(checkpoints / OWNER, overwrite=True) as file:
            file.write_text(_own_name(os.getpid()), encoding="utf-8")
    return goes_on


def check_owner(checkpoints: Path) -> None:
    """Raises ValueError, in the main process, where another run has begun in the folder since this process claimed it.

    So a run that is replaced, or resumed elsewhere, while it still trains neither takes the other's checkpoints for its
    own nor removes them.
    """
    if not this_process().is_main_process:
        return
    try:
        owner = read_text(checkpoints / OWNER, largest=MEBIBYTE)
    except FileNotFoundError:
        owner = "one that has ended since"
    if owner != _own_name(os.getpid()):
        raise ValueError(
            f"another run has begun in {checkpoints} while this one went on ({owner.partition(', ')[0]}), so this one "
            "ends without a result. Give each run an output_dir of its own."
        )


class KeepOwner(TrainerCallback):
    """Ends a training whose folder another run has taken (`check_owner`)."""

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Before anything is saved."""
        check_owner(self.checkpoints)


@cache
def _own_name(process: int) -> str:
    return f"process {process} on {platform.node()}, {uuid.uuid4().hex}"


def remove_checkpoints(checkpoints: Path) -> None:
    """Removes a run's checkpoints, their fingerprint last: what a kill leaves is still known to be a run's.

    Raises:
        ValueError: the folder is not a run's.
    """
    if read_fingerprint(checkpoints) is None:
        return
    for path in sorted(checkpoints.iterdir(), key=lambda path: path.name == FINGERPRINT):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not checkpoints.is_symlink():  # a link to a larger disk stays
        checkpoints.rmdir()


def remove_left_over(config: RunConfig) -> None:
    """Removes the checkpoints of a run that is finished, where a kill left them; nobody else's."""
    checkpoints = checkpoints_of(config)
    try:
        fingerprint = read_fingerprint(checkpoints)
    except ValueError as error:
        logger.warning("%s", error)
        return
    if fingerprint is not None and fingerprint.settings == config.fingerprint:
        remove_checkpoints(checkpoints)


def digest_of(*parts: datasets.Dataset | None) -> str:
    """A hash of encoded rows: what is read, and what is to be answered."""
    content = [(part["input_ids"][:], part["labels"][:]) for part in parts if part is not None]
    return hashlib.sha256(repr(content).encode()).hexdigest()
