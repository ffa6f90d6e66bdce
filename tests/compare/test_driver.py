"""The time left, the order of things, and the files at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compare.plans import plan
from varlora.compare import Cell, driver, read_plan
from varlora.compare.cell_lock import CellLock
from varlora.compare.cells_file import read_cells
from varlora.compare.driver import (
    NUMBERS,
    PAGE,
    PLAN,
    TABLES,
    Watch,
    cells_elsewhere,
    finish,
    follow,
    poll_cells,
    study_numbers,
    write_plan,
)
from varlora.compare.timer import Timer
from varlora.compare.worker import Outcome, failures_of
from varlora.report.study import Block, Cost, Study


def test_every_cell_ends_and_is_shown(tmp_path: Path) -> None:
    cells = plan(tmp_path).cells()
    shown: list[tuple[int, str | None]] = []
    timer = Timer(cells)
    watch = Watch(timer=timer, at_once=1, waiting=list(cells))

    def ended() -> Iterator[Outcome]:
        for cell, error in zip(cells, ["broken", None], strict=True):
            watch.started(cell)
            assert len(watch.running) == 1
            yield Outcome(cell=cell, seconds=10, error=error)

    outcomes = follow(
        ended(), watch, lambda watch, outcome: shown.append((len(watch.running), outcome and outcome.error))
    )
    assert [outcome.error for outcome in outcomes] == ["broken", None]
    assert shown == [(0, "broken"), (0, None)]
    assert timer.expected(cells[0]) == 10  # of the like cell that ended well; the failed one tells nothing


def test_a_folder_that_cannot_be_written_to_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(tmp_path)

    def refuse(target: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(driver, "atomic_file", refuse)
    with pytest.raises(ValueError, match=r"cannot be written to \(Permission denied\)\. Choose another output_dir"):
        write_plan(made, made.cells())


def test_cells_of_other_processes_are_seen_to_begin_and_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = plan(tmp_path, {"seeds": [0, 1]}).cells()
    cells[0].error_file.parent.mkdir(parents=True)
    cells[0].error_file.write_text("ValueError: of the last time\n")
    done: set[Path] = set()
    monkeypatch.setattr(Cell, "state", lambda cell: "done" if cell.folder in done else _failed_or_missing(cell))
    held = CellLock(cells[1]).acquire()
    looks = [True, True, True, False]

    def running() -> bool:
        if len(looks) == 3:
            held.__enter__()
        elif len(looks) == 2:
            held.__exit__(None, None, None)
            done.add(cells[1].folder)
        elif len(looks) == 1:
            cells[0].error_file.write_text("Traceback\n\nValueError: of this time\n")
            done.add(cells[2].folder)  # between two looks
        return looks.pop(0)

    began: list[Cell] = []
    outcomes = list(poll_cells(cells, failures=failures_of(cells), running=running, started=began.append, pause=0))
    assert began == [cells[1]]
    assert [(outcome.cell, outcome.error) for outcome in outcomes] == [
        (cells[1], None),
        (cells[0], "ValueError: of this time"),
        (cells[2], None),
    ]


def _failed_or_missing(cell: Cell) -> str:
    return "failed" if cell.error_file.is_file() else "missing"


def test_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = plan(tmp_path, {"seeds": [0, 1, 2]}).cells()
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = Watch(timer=Timer(cells), at_once=2, waiting=list(cells))
    assert watch.seconds_left() is None
    watch.started(cells[0])
    watch.ended(Outcome(cell=cells[0], seconds=100))
    watch.started(cells[1])
    assert watch.seconds_left() == (4 * 100 + 100) / 2
    now += 30
    assert watch.seconds_left() == (4 * 100 + 70) / 2
    now += 300
    assert watch.seconds_left() == 4 * 100 / 2  # it takes longer than it should
    watch.ended(Outcome(cell=cells[1], seconds=40))
    assert watch.seconds_left() == (2 * 40 + 2 * 100) / 2


def test_the_plan_and_the_cells_are_written_before_anything_runs(tmp_path: Path) -> None:
    asked = plan(tmp_path, code_versions=["0123456789"])
    write_plan(asked, asked.cells())
    assert read_plan(asked.output_dir / PLAN) == asked
    assert read_cells(asked.output_dir) == asked.cells()


def test_a_file_is_no_folder_of_a_plan(tmp_path: Path) -> None:
    asked = plan(tmp_path, output_dir=tmp_path / "file")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"cannot be a folder: .*file is a file\. Choose another output_dir"):
        write_plan(asked, ())
    assert (tmp_path / "file").read_text() == "mine"


def test_who_works_elsewhere_is_known(tmp_path: Path) -> None:
    cells = plan(tmp_path).cells()
    assert cells_elsewhere(cells) == {}
    with CellLock(cells[1]).acquire():
        found = cells_elsewhere(cells)
    assert list(found) == [cells[1].title]
    assert found[cells[1].title].startswith("process ")


def test_a_study_of_nothing_is_written_too(tmp_path: Path) -> None:
    asked = plan(tmp_path)
    asked.output_dir.mkdir()
    study = finish(asked, asked.cells())
    values = json.loads((asked.output_dir / NUMBERS).read_text())
    assert values["blocks"][0]["comparison"] is None
    assert values["blocks"][0]["missing"] == list(study.blocks[0].missing) != []
    assert (asked.output_dir / TABLES).read_text().startswith("# tiny")
    assert "<html" in (asked.output_dir / PAGE).read_text()
    stamp = (asked.output_dir / PAGE).read_text()
    finish(asked, asked.cells())
    assert (asked.output_dir / PAGE).read_text() == stamp


def test_the_numbers_of_a_study_are_plain() -> None:
    cost = Cost(label="a", seed=0, train_seconds=1.5, predict_seconds={"A": 0.5}, peak_memory_bytes=None, file_bytes=3)
    block = Block(
        model="m",
        task="t",
        comparison=None,
        missing=["x"],
        costs=[cost],
        detection={"ood": {"A": {"auroc": [0.5]}}},
        completions={"test": {"A": {"exact_match": [0.25]}}},
    )
    found = study_numbers(Study(name="s", reference="A", blocks=[block], code_versions=["0"]))
    assert json.loads(json.dumps(found)) == found
    assert found["blocks"][0]["costs"][0]["train_seconds"] == 1.5
    assert found["blocks"][0]["detection"]["ood"]["A"]["auroc"] == [0.5]
    assert found["blocks"][0]["completions"]["test"]["A"]["exact_match"] == [0.25]
    assert driver.NUMBERS == "study.json"
