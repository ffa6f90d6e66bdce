"""The time left, the order of things, and the files at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from compare.plans import plan
from varlora.compare import Cell, driver, read_plan
from varlora.compare.driver import NUMBERS, PAGE, PLAN, TABLES, Watch, finish, opened, run_cells, study_numbers
from varlora.compare.engines import Outcome
from varlora.compare.estimate import Timer
from varlora.compare.worker import read_cells
from varlora.report.study import Block, Cost, Study


class FakeEngine:
    """Ends each cell as it is told, and notes whether it was left early."""

    def __init__(self, errors: list[str | None], at_once: int = 1) -> None:
        self.at_once = at_once
        self.errors = errors
        self.closed = False

    def run(self, cells: tuple[Cell, ...], started: object) -> Generator[Outcome, None, None]:
        assert callable(started)
        try:
            for cell, error in zip(cells, self.errors, strict=True):
                started(cell)
                yield Outcome(cell=cell, seconds=10, error=error)
        finally:
            self.closed = True


def test_every_cell_ends_and_is_shown(tmp_path: Path) -> None:
    cells = plan(tmp_path).cells()
    shown: list[tuple[int, str | None]] = []
    timer = Timer(cells)
    outcomes = run_cells(
        cells,
        FakeEngine(["broken", None]),
        timer=timer,
        shown=lambda watch, outcome: shown.append((len(watch.running), outcome.error if outcome else "begun")),
    )
    assert [outcome.error for outcome in outcomes] == ["broken", None]
    assert shown == [(1, "begun"), (0, "broken"), (1, "begun"), (0, None)]
    assert timer.expected(cells[0]) == 10  # of the like cell that ended well; the failed one tells nothing


def test_leaving_early_leaves_the_engine(tmp_path: Path) -> None:
    engine = FakeEngine([None, None])

    def interrupt(watch: Watch, outcome: Outcome | None) -> None:
        if outcome is not None:
            raise KeyboardInterrupt

    cells = plan(tmp_path).cells()
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, engine, timer=Timer(cells), shown=interrupt)
    assert engine.closed


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
    with opened(asked, asked.cells()):
        assert read_plan(asked.output_dir / PLAN) == asked
        assert read_cells(asked.output_dir) == asked.cells()
        with pytest.raises(ValueError, match="is at work in"):
            with opened(asked, asked.cells()):
                pass


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
