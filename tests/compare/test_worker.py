"""One cell, done: trained, resumed, and its variants made; the file of cells; the process that ends with its parent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compare.plans import plan
from small_runs import StopAfter, Stopped
from varlora.compare import Cell, worker
from varlora.compare.variants import load_variant
from varlora.compare.worker import CELLS, ORPHANED, execute_cell, read_cells, write_cells
from varlora.runs import load_setting, method_of, read_run, run, train
from varlora.runs.checkpoints import checkpoints_of, unfinished


def interrupt(one: Cell, step: int) -> None:
    """Leaves what a kill after a step leaves."""
    with pytest.raises(Stopped):
        train(
            load_setting(one.config),
            method_of(one.config),
            checkpoints=checkpoints_of(one.config),
            progress=False,
            callbacks=[StopAfter(step)],
        )


def assert_same_predictions(first: Cell, second: Cell) -> None:
    """Bit for bit, of every variant and split."""
    runs = [read_run(cell.folder) for cell in (first, second)]
    for variant in first.variants:
        for split in ("validation", "test"):
            one, other = (load_variant(found, variant, split) for found in runs)
            assert torch.equal(one.log_probs, other.log_probs), (first.title, variant, split)
            assert one.ids == other.ids


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """A cell that nothing has interrupted."""
    one = plan(tmp_path_factory.mktemp("whole")).cells()[1]
    one.prepare()
    execute_cell(one)
    return one


def test_a_cell_is_trained_and_predicted_with_and_then_left_alone(whole: Cell) -> None:
    one = whole
    assert one.state() == "done"
    assert read_run(one.folder).config == one.config
    assert read_run(one.folder).facts["task"]["source"] == (
        "generated: varlora's task of multiple choice (the demo's), seed 0; rows: 16 train, 24 validation, 16 test"
    )
    stamps = {file: file.stat().st_mtime_ns for file in one.folder.rglob("*")}
    execute_cell(one)
    assert {file: file.stat().st_mtime_ns for file in one.folder.rglob("*")} == stamps
    shutil.rmtree(one.folder / "variants")
    assert one.state() == "partial"
    execute_cell(one)
    assert one.state() == "done"
    assert (one.folder / "run.json").stat().st_mtime_ns == stamps[one.folder / "run.json"]  # not trained again


def test_an_interrupted_cell_goes_on_and_ends_the_same(
    whole: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = plan(tmp_path).cells()[1]
    broken.prepare()
    interrupt(broken, 5)
    assert broken.state() == "unfinished"
    resumed = []
    monkeypatch.setattr(worker, "run", lambda config, **how: resumed.append(how["resume"]) or run(config, **how))
    execute_cell(broken)
    assert resumed == [True]
    assert_same_predictions(whole, broken)


def test_checkpoints_of_other_settings_are_not_gone_on_from(whole: Cell, tmp_path: Path) -> None:
    broken = plan(tmp_path).cells()[1]
    broken.prepare()
    interrupt(replace(broken, config=replace(broken.config, learning_rate=0.5)), 5)
    assert unfinished(checkpoints_of(broken.config))
    execute_cell(broken)
    assert_same_predictions(whole, broken)


def test_another_source_makes_no_cell_of_this_version(tmp_path: Path) -> None:
    one = plan(tmp_path).cells()[0].made_by("0123456789")
    with pytest.raises(ValueError, match="this comparison began with 0123456789; its results must not mix"):
        execute_cell(one)


def test_the_file_of_cells_is_read_wherever_the_folder_is(tmp_path: Path) -> None:
    asked = plan(tmp_path)
    cells = asked.cells()
    asked.output_dir.mkdir()
    write_cells(cells, asked.output_dir)
    assert read_cells(asked.output_dir) == cells
    there = tmp_path / "moved"
    asked.output_dir.rename(there)
    moved = read_cells(there)
    assert [cell.folder for cell in moved] == [there / cell.folder.relative_to(asked.output_dir) for cell in cells]
    assert all(cell.config.output_dir == str(cell.folder) for cell in moved)


def test_a_folder_without_cells_is_no_comparisons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the output_dir of a `varlora compare`"):
        read_cells(tmp_path)
    (tmp_path / CELLS).write_text("[")
    with pytest.raises(ValueError, match=r"cells\.json is not sound JSON"):
        read_cells(tmp_path)


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    asked = plan(tmp_path, {"settings.max_steps": 100_000, "settings.save_steps": 100_000})
    one = asked.cells()[0]
    one.prepare()
    write_cells([one], asked.output_dir)
    # A parent that starts a worker, says its number, and is killed: nothing of it can stop the worker.
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(600)",
            *(sys.executable, "-m", "varlora.compare.worker", str(asked.output_dir), str(one.folder)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        _wait(lambda: (checkpoints_of(one.config) / "fingerprint").is_file())
        assert _alive(child)
    finally:
        parent.kill()
        parent.wait()
    _wait(lambda: not _alive(child), seconds=20)


def test_a_worker_ends_with_its_input() -> None:
    child = os.fork()
    if child == 0:
        sys.stdin = open(os.devnull)  # noqa: SIM115
        worker._end_with_input()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ORPHANED


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait(happened: object, seconds: float = 120) -> None:
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_cells_file_is_plain_json(tmp_path: Path) -> None:
    asked = plan(tmp_path)
    asked.output_dir.mkdir()
    write_cells(asked.cells(), asked.output_dir)
    values = json.loads((asked.output_dir / CELLS).read_text())
    assert [value["method"] for value in values] == ["adamw", "ivon"]
