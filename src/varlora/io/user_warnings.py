"""What varlora's `warnings.warn` tells its users, as log entries: for programs that show their log."""

from __future__ import annotations

import logging
import sys
import warnings
from types import FrameType
from typing import Any


def log_user_warnings() -> None:
    """From now on this process's warnings for users are log entries; those of other libraries are dropped."""
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Warnings for users as log entries; those between programmers are dropped, as are the libraries' own."""
    if category.__module__.startswith("varlora") or _raised_by_us():
        logging.getLogger("varlora").warning("%s", message)


def _raised_by_us() -> bool:
    """Whether a function of ours issued the warning: a library's may be attributed to any line."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module != "warnings":
            return module.startswith("varlora")
        frame = frame.f_back
    return False
