"""The settings of a folder with trained weights that `varlora train` has not written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varlora.runs.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class FolderConfig(RunConfig):
    """The settings of a folder that `varlora train` has not written: a model and how rows are read, without rows.

    Attributes:
        choice_role: what a choice is to its question, which a run's named task says.
    """

    choice_role: Literal["answer", "ending", "blank"] = "answer"

    def check_data(self) -> None:
        """There are none."""
