"""The most memory that a run held, though its process may have done other runs before.

On a GPU it is what torch has allocated there; else the process's resident set, of which Linux forgets an earlier peak
when it is asked to. Where it cannot be asked, a peak that the run has not raised is an earlier run's, and not known.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Linux's, of the process itself."""


class PeakMemory:
    """Notes the most memory held from where it is made.

    Example:
        >>> memory = PeakMemory()
        >>> held = bytes(2**27)
        >>> memory.peak() > len(held) or torch.cuda.is_available()
        True
    """

    def __init__(self) -> None:
        self._forgotten = _forget_peak()
        self._before = _peak()

    def peak(self) -> int | None:
        """Bytes; None where an earlier peak was higher and hides it."""
        peak = _peak()
        return peak if self._forgotten or peak > self._before else None


def _forget_peak() -> bool:
    """Whether the peak begins anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        FORGET.write_text("5", encoding="ascii")  # proc(5): the peak resident set size
    except OSError:  # another system, or a container that forbids it
        return False
    return True


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
