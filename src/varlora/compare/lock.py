"""One live comparison for each output folder.

The lock is the kernel's (flock), so that a process that dies in any way gives it back. Worker processes inherit it:
while one of a killed comparison's workers still ends, the folder is not free.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from varlora.folders import check_can_be_folder

LOCK = ".lock"


@contextmanager
def locked(folder: Path, *, patience: float = 20.0) -> Iterator[int]:
    """Holds a folder's lock within the block, and yields its file descriptor for child processes to inherit.

    Args:
        folder: is made if it does not exist.
        patience: seconds to wait for the workers of a comparison that is dead.

    Raises:
        ValueError: another comparison is at work in the folder, or it cannot be one.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked(folder):
        ...     (folder / LOCK).read_text() == str(os.getpid())
        True
    """
    check_can_be_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, folder, time.monotonic() + patience)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            holder = int(text) if text.isdigit() else None
            if holder is not None and _alive(holder):
                raise ValueError(
                    f"another `varlora compare` (process {holder}) is at work in {folder}. Wait for it, stop it, or "
                    "choose another folder by --output_dir."
                ) from error
            if time.monotonic() > deadline:
                raise ValueError(
                    f"workers of a `varlora compare` that is dead still hold {folder / LOCK}. Stop them, or wait and "
                    "try again."
                ) from error
            time.sleep(0.1)
        else:
            return


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
