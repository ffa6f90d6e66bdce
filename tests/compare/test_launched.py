"""A cell done by processes that a launcher starts: how they end, and what is said of it."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from compare.plans import plan
from varlora.compare import Cell, launched
from varlora.compare.cells_file import write_cells
from varlora.compare.launched import ORPHANED, launch_cell, launcher_command
from varlora.compare.worker import take_cells


@pytest.fixture
def one(tmp_path: Path) -> Cell:
    return plan(tmp_path).cells()[0]


def launches(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Lets launchers start a Python program."""
    monkeypatch.setattr(launched, "launcher_command", lambda launcher: [sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("code", "first", "text"),
    [
        ("print('half way', flush=True); import sys; sys.exit('no room')", "exit code 1: no room", "half way"),
        ("import os; print('half way', flush=True); os.kill(os.getpid(), 9)", "killed by signal 9: half way", ""),
    ],
)
def test_processes_that_end_badly_are_a_failed_cell(
    one: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, first: str, text: str
) -> None:
    launches(monkeypatch, code)
    outcomes = list(
        take_cells([one], failures={}, started=lambda _: None, execute=lambda cell: launch_cell(cell, tmp_path, "x"))
    )
    assert [outcome.error for outcome in outcomes] == [f"RuntimeError: {first}"]
    assert text in one.error_file.read_text()
    assert not list(tmp_path.rglob("*.output.txt"))


def test_they_are_told_the_cell_and_what_ends_well_leaves_nothing(
    one: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches(monkeypatch, f"import sys; assert sys.argv[1:] == [{str(tmp_path)!r}, {str(one.folder)!r}]")
    launch_cell(one, tmp_path, "x")
    assert not list(one.folder.parent.iterdir())


def test_what_they_warn_of_is_told_once(
    one: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = "print('warning: few rows', flush=True)"
    launches(monkeypatch, f"{said}; print('step 10'); {said}")
    launch_cell(one, tmp_path, "x")
    assert [record.getMessage() for record in caplog.records] == ["few rows"]


def test_an_interrupt_asks_them_to_stop_and_then_ends_them(
    one: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launched, "SECONDS_TO_SAVE", 0.5)
    asked = tmp_path / "asked"
    code = (
        "import pathlib, subprocess, sys, time; child = subprocess.Popen(['sleep', '600']);"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid)); sys.stdin.read(1);"
        f"pathlib.Path({str(asked)!r}).write_text('yes'); time.sleep(600)"
    )
    launches(monkeypatch, code)
    popen = launched.subprocess.Popen

    class Interrupted(popen):  # type: ignore[misc, valid-type]
        def wait(self, timeout: float | None = None) -> int:
            if timeout is None and not asked.exists():
                while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
                    time.sleep(0.01)
                raise KeyboardInterrupt
            return int(super().wait(timeout))

    monkeypatch.setattr(launched.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch_cell(one, tmp_path, "x")
    assert asked.read_text() == "yes"
    assert not _alive(int((tmp_path / "child").read_text()))


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("asked", [True, False])
def test_a_process_ends_when_it_is_asked_to_or_its_parent_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: bool
) -> None:
    reading, writing = os.pipe()
    steps: list[object] = []
    monkeypatch.setattr(launched, "ask_to_stop", lambda: steps.append("stops after a step") or True)
    monkeypatch.setattr(time, "sleep", steps.append)
    monkeypatch.setattr(os, "_exit", steps.append)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        thread = threading.Thread(target=launched._watch_input)
        thread.start()
        if asked:
            os.write(writing, launched.ASKED)
        os.close(writing)
        thread.join()
    assert steps == (["stops after a step", launched.SECONDS_TO_SAVE, ORPHANED] if asked else [ORPHANED])


def test_a_launcher_stands_before_the_module() -> None:
    command = launcher_command("accelerate launch --num_processes 8")
    assert Path(command[0]).name == "accelerate"
    assert Path(command[0]).is_file()
    assert command[1:] == ["launch", "--num_processes", "8", "-m", "varlora.compare.launched"]
    with pytest.raises(ValueError, match="begins with 'acelerate', which is no program here"):
        launcher_command("acelerate launch")


@pytest.mark.slow
def test_two_processes_under_accelerate_make_one_cell(tmp_path: Path) -> None:
    asked = plan(tmp_path)
    one = asked.cells()[0]
    asked.output_dir.mkdir()
    write_cells([one], asked.output_dir)
    one.prepare()
    launcher = "accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch_cell(one, asked.output_dir, launcher)
    assert one.state() == "done"
