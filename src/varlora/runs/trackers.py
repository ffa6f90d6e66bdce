"""The trackers that a training is reported to, by the integrations of transformers' Trainer."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path

from varlora.io.nearest import nearest

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
"""The packages, any of which serves, by the tracker's name."""
EVENTS = "events.out.tfevents.*"
"""TensorBoard's files."""


def tracker_names(report_to: str) -> list[str]:
    """The trackers that a comma-separated list names.

    Raises:
        ValueError: one is not known, or "none" stands beside others.

    Example:
        >>> tracker_names("tensorboard,wandb"), tracker_names("none")
        (['tensorboard', 'wandb'], [])
    """
    names = [name.strip() for name in report_to.split(",")]
    if names == ["none"]:
        return []
    if strange := [name for name in names if name not in PACKAGES]:
        allowed = f"'none', or of {', '.join(PACKAGES)} one or several, comma-separated"
        hint = nearest(strange[0], PACKAGES, otherwise="")
        raise ValueError(f"report_to is {report_to!r}; it must be {allowed}. {hint}".strip())
    return names


def check_trackers(report_to: str) -> None:
    """Refuses trackers that are not installed; called before anything is loaded.

    Raises:
        ValueError: one is not.
    """
    for name in tracker_names(report_to):
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise ValueError(
                f"report_to is {report_to!r}, and {name} is not installed: pip install {PACKAGES[name][0]}. Without "
                "report_to the log is in the run folder (log.jsonl)."
            )


def keep_events(checkpoints: Path, folder: Path) -> None:
    """Copies TensorBoard's files, which the trainer writes below its checkpoints, into a folder.

    Args:
        checkpoints: what is removed when the run has ended.
        folder: what stays.
    """
    for file in sorted(checkpoints.rglob(EVENTS)):
        kept = folder / "tensorboard" / file.relative_to(checkpoints)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, kept)
