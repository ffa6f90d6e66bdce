"""One process at a time for each cell, on however many machines that share a folder.

The lock is a file beside the cell's folder (`filelock.SoftFileLease`), made by exclusive creation, which shared file
systems have where flock may lock one machine alone. It names its holder, who renews it. Who finds that the holder is
dead (on its own machine), or has not renewed it for `LEASE_SECONDS` (on another), takes it over.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from varlora.compare.cell import Cell
from varlora.training.stopping import ask_to_stop

logger = logging.getLogger(__name__)

LEASE_SECONDS = 180.0
"""More than a network file system may hold an old time back (a minute) and a busy process may not come to renew it."""
RENEWAL_SECONDS = 30.0


class CellLock:
    """The lock of a cell; one object must be kept to see whether a holder on another machine renews it.

    Args:
        cell: the cell.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self._file = cell.folder.with_name(f".{cell.folder.name}.lock")
        self._lease = make_lease(self._file, lost=_stop_training)
        self._first_seen: int | None = None

    @contextmanager
    def acquire(self) -> Iterator[bool]:
        """Yields whether the cell is this process's within the block; False: another works on it."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if not _acquire_now(self._lease):
            yield False
            return
        try:
            yield True
        finally:
            self._lease.release()

    @property
    def exists(self) -> bool:
        """Whether a process has it, or had it when it was killed."""
        return self._file.exists()

    def holder(self) -> str | None:
        """Who has it, in words; None if nobody has. A dead holder's is removed."""
        if not self.exists:
            return None
        if _acquire_now(self._lease):
            self._lease.release()
            return None
        owner = self._lease.owner
        return "another process" if owner is None else f"process {owner.pid} on {owner.hostname}"

    def is_unclear(self) -> bool:
        """Whether it may be free soon: its holder is on another machine and has not been seen to renew it."""
        owner = self._lease.owner
        try:
            renewed = self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        if owner is not None and owner.hostname == _own_hostname():
            return False
        if self._first_seen is None:
            self._first_seen = renewed
        return self._first_seen == renewed


def make_lease(file: Path, *, lost: Callable[[LeaseCompromise], None] | None = None) -> SoftFileLease:
    """A lock that a dead process loses.

    Args:
        file: the lock's.
        lost: is called, by the thread that renews it, where a living process loses it.
    """
    return SoftFileLease(file, lease_duration=LEASE_SECONDS, heartbeat_interval=RENEWAL_SECONDS, on_compromise=lost)


def _acquire_now(lease: SoftFileLease) -> bool:
    for _ in range(2):  # the first may only remove a dead holder's
        try:
            lease.acquire(timeout=0)
        except Timeout:
            continue
        return True
    return False


def _stop_training(loss: LeaseCompromise) -> None:
    logger.warning(
        "%s is no longer this process's (%s): for %g s it could not be renewed, or it was removed. The cell's training "
        "stops, and another process may go on with it",
        loss.lock_file,
        loss.reason,
        LEASE_SECONDS,
    )
    ask_to_stop()


@cache
def _own_hostname() -> str:
    """This machine's name as locks have it."""
    with tempfile.TemporaryDirectory() as folder, make_lease(Path(folder) / "lock") as lease:
        owner = lease.owner
        assert owner is not None
        return owner.hostname
