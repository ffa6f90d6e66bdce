"""Kills runs (SIGKILL) at random moments of their lives, resumes them until they end, and compares every bit.

    python benchmarks/kill_soak.py --kills 100

A tiny run, which saves a checkpoint every third step and ends in the middle of an epoch, is finished once undisturbed.
Then the same run is started in other folders, each start killed at a random moment, until it has ended: `--resume`
where anything was begun, as a user would. Every finished folder must equal the first, file by file, but for the times
in it. Half of the moments are times, uniform over the life of a run; the others are uniform over the file operations
in its folders (opening, making, renaming, removing), so that its first file and its last are hit, too.
Each start is a fork of one process that has imported everything, so that a kill costs a second and not ten.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

from small_runs import config, save_model
from varlora.runs.checkpoints import checkpoints_of
from varlora.runs.config import RunConfig
from varlora.runs.folder import is_run
from varlora.runs.run import AlreadyFinishedError, run
from varlora.training.checkpoint_files import CHECKPOINT_FILES, checkpoints_in, read_checkpoint_files

METHODS = ("ivon", "adamw", "swag", "ensemble")
TIMES = ("run.json", "log.jsonl", "README.md", "config.yaml")
"""Files that tell times and the folder's name."""
OPERATIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
"""As Python's audit events name them."""
DONE, REFUSED, BROKEN = 0, 3, 4


@dataclass(kw_only=True)
class Soak:
    """What was found.

    Attributes:
        kills: by what they left behind.
        runs: that were finished.
        differences: of files, with the run.
        failures: starts that ended with an error.
    """

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    differences: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def told(self) -> str:
        """In lines."""
        left = "\n".join(f"  {count:5d}  {state}" for state, count in self.kills.most_common())
        return (
            f"{self.kills.total()} kills of {self.runs} runs, which left\n{left}\n"
            f"{len(self.failures)} starts that failed, {len(self.differences)} differences\n"
            + "\n".join([*self.failures, *self.differences])
        )


def soak(folder: Path, *, kills: int, seed: int, method: str = "ivon", max_steps: int = 14) -> Soak:
    """Kills one run after another until the number of kills is reached; the last run is finished, too.

    Args:
        folder: for everything that is written.
        kills: at least so many.
        seed: of the times of the kills.
        method: how is trained.
        max_steps: of a run; an epoch has 4.
    """
    generator = random.Random(seed)
    whole = config(folder, save_model(folder / "model"), method=method, max_steps=max_steps, save_steps=3)
    start, counted = time.perf_counter(), folder / "operations.txt"

    def undisturbed() -> None:
        count = _watch(whole.output_dir, None)
        run(whole, progress=False)
        counted.write_text(str(count()))

    assert _ended(_fork(undisturbed, folder / "errors.txt"), None) == DONE
    life, operations = time.perf_counter() - start, int(counted.read_text())
    found = Soak()
    while found.kills.total() < kills:
        settings = replace(whole, output_dir=str(folder / f"run-{found.runs}"))
        ended = False
        while not ended:
            by_time = generator.random() < 0.5
            seconds = generator.uniform(0.0, life) if by_time else None
            operation = None if by_time else generator.randint(1, operations)
            ended = _start(settings, found, seconds, operation, folder / "errors.txt")
        found.differences += _differences(Path(whole.output_dir), Path(settings.output_dir))
        if left := [path.name for path in folder.glob(f"*run-{found.runs}.checkpoints*")]:
            found.differences.append(f"run-{found.runs}: {left} left")
        found.runs += 1
        shutil.rmtree(settings.output_dir)
    return found


def _start(settings: RunConfig, found: Soak, seconds: float | None, operation: int | None, errors: Path) -> bool:
    """One start, with its kill; whether the run has ended."""
    begun = checkpoints_of(settings).exists() or is_run(settings.output_dir)

    def start() -> None:
        _watch(settings.output_dir, operation)
        run(settings, resume=begun, progress=False)

    status = _ended(_fork(start, errors), seconds)
    if status is None:
        found.kills[_left(settings)] += 1
        return False
    if status != DONE:
        found.failures.append(f"{Path(settings.output_dir).name}: {errors.read_text(encoding='utf-8')}")
        shutil.rmtree(checkpoints_of(settings), ignore_errors=True)
    return status == DONE


def _fork(action: Callable[[], object], errors: Path) -> int:
    """A child process that does something; its number."""
    child = os.fork()
    if child:
        return child
    status = BROKEN
    try:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        action()
        status = DONE
    except AlreadyFinishedError:
        status = DONE
    except BaseException as error:  # noqa: BLE001  the parent tells it
        errors.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        status = REFUSED
    finally:
        os._exit(status)


def _watch(folder: str, last: int | None) -> Callable[[], int]:
    """Counts this process's file operations in a run's folders, and kills it before the last; gives the count."""
    count, inside = 0, os.path.join(os.path.dirname(folder), "")
    names = (os.path.basename(folder), f".{os.path.basename(folder)}.")

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event not in OPERATIONS or not (
            isinstance(arguments[0], (str, Path)) and str(arguments[0]).startswith(inside)
        ):
            return
        if str(arguments[0]).removeprefix(inside).startswith(names):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return lambda: count


def _ended(child: int, seconds: float | None) -> int | None:
    """A child's exit status; None if it was killed, as it is after so many seconds."""
    deadline = time.perf_counter() + seconds if seconds is not None else float("inf")
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        if time.perf_counter() > deadline:
            os.kill(child, signal.SIGKILL)
            number, status = os.waitpid(child, 0)
            return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.001)


def _left(settings: RunConfig) -> str:
    """What a kill has left, in words."""
    target = Path(settings.output_dir)
    if is_run(target):
        return "the finished run, and checkpoints"
    if any(target.parent.glob(f".{target.name}.*")):
        return "half a run's folder, and checkpoints"
    folders = [checkpoints_of(settings), *checkpoints_of(settings).glob("member-*")]
    every = [checkpoint for folder in folders for checkpoint in checkpoints_in(folder)]
    listed = [read_checkpoint_files(checkpoint) for checkpoint in every if (checkpoint / CHECKPOINT_FILES).is_file()]
    if any(one is None or one.files is None for one in listed) or len(listed) < len(every):
        return "half a checkpoint" + (" beside a whole one" if any(one and one.files for one in listed) else "")
    return "whole checkpoints" if every else "no checkpoint"


def _differences(first: Path, second: Path) -> list[str]:
    """Files that are not the same in both folders, to the byte."""
    names = {path.relative_to(folder) for folder in (first, second) for path in folder.rglob("*") if path.is_file()}
    compared = sorted(name for name in names if name.name not in TIMES)
    return [
        f"{second.name}/{name}"
        for name in compared
        if not ((first / name).is_file() and (second / name).is_file())
        or (first / name).read_bytes() != (second / name).read_bytes()
    ]


def main() -> None:
    """Prints what was found; exit code 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100, help="at least so many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--method", choices=METHODS, default="ivon")
    parser.add_argument("--max_steps", type=int, default=14, help="steps of a run; an epoch has 4")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), kills=given.kills, seed=given.seed, method=given.method, max_steps=given.max_steps)
    print(found.told())
    sys.exit(bool(found.failures or found.differences))


if __name__ == "__main__":
    main()
