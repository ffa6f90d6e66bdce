"""One process for each cell, wherever it runs; a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compare.plans import plan
from varlora.compare import Cell, cell_lock
from varlora.compare.cell_lock import CellLock
from varlora.training.stopping import stop_requests

HOLDER = """
import sys, time
from filelock import SoftFileLease
lease = SoftFileLease(sys.argv[1], lease_duration=float(sys.argv[2]), heartbeat_interval=float(sys.argv[2]) / 4)
lease.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def one(tmp_path: Path) -> Cell:
    return plan(tmp_path).cells()[0]


def lock_file(cell: Cell) -> Path:
    return cell.folder.with_name(f".{cell.folder.name}.lock")


def hold(cell: Cell) -> subprocess.Popen[str]:
    """A process that holds a cell's lock, and sleeps."""
    lock_file(cell).parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock_file(cell)), str(cell_lock.LEASE_SECONDS)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def move_holder_to_another_machine(cell: Cell) -> None:
    """As if the process that holds the lock were there."""
    text = lock_file(cell).read_text()
    lines = ["host=elsewhere" if line.startswith("host=") else line for line in text.splitlines()]
    lock_file(cell).write_text("".join(f"{line}\n" for line in lines))


def acquired(lock: CellLock) -> bool:
    with lock.acquire() as mine:
        return mine


def test_a_cell_is_one_process_s_until_it_is_left(one: Cell) -> None:
    first, second = CellLock(one), CellLock(one)
    for _ in range(2):
        assert second.holder() is None
        with first.acquire() as mine:
            assert mine
            assert not acquired(second)
            assert str(second.holder()).startswith(f"process {os.getpid()} on ")
        assert acquired(second)
        assert not first.exists


def test_it_is_left_when_the_block_fails(one: Cell) -> None:
    with pytest.raises(KeyboardInterrupt):
        with CellLock(one).acquire():
            raise KeyboardInterrupt
    assert acquired(CellLock(one))


def test_a_killed_process_s_cell_is_taken_over_at_once(one: Cell) -> None:
    process = hold(one)
    lock = CellLock(one)
    try:
        assert not acquired(lock)
        assert not lock.is_unclear()  # it lives, as this machine knows
        assert str(lock.holder()).startswith(f"process {process.pid} on ")
    finally:
        end(process)
    assert lock.exists
    with lock.acquire() as mine:
        assert mine
        assert str(CellLock(one).holder()).startswith(f"process {os.getpid()} on ")


def test_on_another_machine_a_process_is_dead_when_it_does_not_renew_its_lock(
    one: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_lock, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(cell_lock, "RENEWAL_SECONDS", 0.1)
    end(hold(one))
    move_holder_to_another_machine(one)
    lock = CellLock(one)
    assert not acquired(lock)
    assert lock.is_unclear()
    assert str(lock.holder()).endswith(" on elsewhere")
    os.utime(lock_file(one))
    assert not acquired(lock)
    assert not lock.is_unclear()  # it has been renewed
    deadline = time.monotonic() + 20
    while not acquired(lock):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lost_lock_stops_the_training(one: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_lock, "RENEWAL_SECONDS", 0.02)
    with stop_requests() as request, CellLock(one).acquire():
        lock_file(one).unlink()
        deadline = time.monotonic() + 20
        while not request.number:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert request.number == signal.SIGTERM
