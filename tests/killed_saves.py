"""Kills a save (SIGKILL) at every point where it touches the disk, and looks at what is left.

There are three ways of saving: into nothing ("first"), over an old folder by one system call ("swap"), and where the
system has none ("renames").
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from varlora.io import folders
from varlora.posterior import DiagonalGaussian
from varlora.posterior.folder import CheckpointError, load_posterior, save_posterior


def posterior(value: float) -> DiagonalGaussian:
    return DiagonalGaussian(mean={"w": torch.full((50,), value)}, precision={"w": torch.full((50,), value)})


def kill_at(point: int) -> Callable[..., Any]:
    """Wraps disk operations so that the process dies before number `point` of them, or halfway through it."""
    seen = 0

    def wrap(operation: Callable[..., Any], halfway: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == point:
                if halfway is not None:
                    halfway(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return run

    return wrap


def save_and_die(target: Path, point: int, mode: str) -> None:
    wrap, write = kill_at(point), Path.write_bytes
    Path.write_bytes = wrap(write, lambda path, data: write(path, data[: len(data) // 2]))  # type: ignore[method-assign]
    Path.mkdir = wrap(Path.mkdir)  # type: ignore[method-assign]
    os.fsync, os.rename = wrap(os.fsync), wrap(os.rename)
    folders._exchange = (lambda *_: False) if mode == "renames" else wrap(folders._exchange)
    shutil.rmtree = wrap(shutil.rmtree, lambda folder, **_: next(Path(folder).iterdir()).unlink())
    save_posterior(posterior(2.0), target, overwrite=True)


def found(target: Path) -> str:
    """What a user finds: "nothing", "old", "new", or "said" if the load says where both are, complete."""
    try:
        return {1.0: "old", 2.0: "new"}[load_posterior(target).mean["w"][0].item()]
    except CheckpointError as error:
        if target.exists():
            return f"damaged: {error}"
        left = folders.find_interrupted(target)
        if "old" not in "".join(path.name for path in left):
            return "nothing"
        both = [load_posterior(path).mean["w"][0].item() for path in left]
        return "said" if both == [1.0, 2.0] and all(str(path) in str(error) for path in left) else "lost"


def outcomes(folder: Path, mode: str) -> list[str]:
    """What was found after each kill, of a process that is forked from this one."""
    found_after = []
    for point in range(1, 100):
        target = folder / str(point) / "posterior"
        if mode == "first":
            target.parent.mkdir(parents=True)
        else:
            save_posterior(posterior(1.0), target)
        child = os.fork()
        if child == 0:
            save_and_die(target, point, mode)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        found_after.append(found(target))
        if status == 0:
            break
    return found_after
