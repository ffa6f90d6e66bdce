"""One live comparison for each folder; a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from varlora.compare.lock import LOCK, locked

HOLDER = """
import fcntl, os, subprocess, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.pwrite(file, str(os.getpid()).encode(), 0)
child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[file]) if float(sys.argv[2]) else None
print(child.pid if child else 0, flush=True)
time.sleep(60)
"""


def hold(folder: Path, child_seconds: float = 0) -> subprocess.Popen[str]:
    """A process that holds the lock, with a child that inherits it and lives on for some seconds."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / LOCK), str(child_seconds)], stdout=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_the_second_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    first = hold(tmp_path)
    assert first.stdout is not None
    first.stdout.readline()
    try:
        with pytest.raises(ValueError, match=rf"\(process {first.pid}\) is at work in .*--output_dir"):
            with locked(tmp_path):
                pass
    finally:
        end(first)


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(ValueError, match=rf"\(process {os.getpid()}\) is at work"):
            with locked(tmp_path):
                pass


def test_a_killed_ones_lock_is_taken_over(tmp_path: Path) -> None:
    first = hold(tmp_path)
    assert first.stdout is not None
    first.stdout.readline()
    end(first)
    assert (tmp_path / LOCK).read_text() == str(first.pid)
    with locked(tmp_path, patience=0):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())


def test_the_workers_of_a_killed_one_are_waited_for(tmp_path: Path) -> None:
    first = hold(tmp_path, child_seconds=1.5)
    assert first.stdout is not None
    first.stdout.readline()
    start = time.monotonic()
    end(first)
    with pytest.raises(ValueError, match="workers of a `varlora compare` that is dead"):
        with locked(tmp_path, patience=0.1):
            pass
    with locked(tmp_path, patience=20):
        assert time.monotonic() - start > 0.5


def test_it_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "new"):
            pass


def test_a_file_is_no_folder_to_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"cannot be a folder: .*file is a file\. Choose another output_dir"):
        with locked(tmp_path / "file"):
            pass
    assert (tmp_path / "file").read_text() == "mine"
