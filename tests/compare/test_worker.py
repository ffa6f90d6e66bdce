"""One cell, done: trained, resumed, and its variants made; and which cells a worker takes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compare.plans import plan
from compare.test_cell_lock import end, hold
from small_runs import StopAfter, Stopped
from varlora.compare import Cell, worker
from varlora.compare.cell_lock import CellLock
from varlora.compare.variant_files import load_variant
from varlora.compare.worker import Outcome, execute_cell, failures_of, take_cells
from varlora.runs.checkpoints import checkpoints_of, is_unfinished
from varlora.runs.config import RunConfig
from varlora.runs.folder import read_run
from varlora.runs.run import method_of, run, train
from varlora.runs.setting import load_setting


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
    other = RunConfig.from_dict({**broken.config.to_dict(), "learning_rate": 0.5})
    interrupt(replace(broken, config=other), 5)
    assert is_unfinished(checkpoints_of(broken.config))
    execute_cell(broken)
    assert_same_predictions(whole, broken)


def test_another_source_makes_no_cell_of_this_version(tmp_path: Path) -> None:
    one = plan(tmp_path).cells()[0].made_by("0123456789")
    with pytest.raises(ValueError, match="this comparison began with 0123456789; its results must not mix"):
        execute_cell(one)


# Which cells are taken --------------------------------------------------------------------------------------------


def take(
    cells: tuple[Cell, ...], execute: Callable[[Cell], None] = lambda cell: None, failures: dict[str, int] | None = None
) -> tuple[list[Cell], list[Outcome]]:
    """The cells that a worker begins, and how all that it looks after end."""
    began: list[Cell] = []
    known = failures_of(cells) if failures is None else failures
    outcomes = list(take_cells(cells, failures=known, started=began.append, execute=execute))
    return began, outcomes


def test_a_cell_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    cells = plan(tmp_path).cells()
    with CellLock(cells[0]).acquire():
        began, outcomes = take(cells)
    assert began == [outcome.cell for outcome in outcomes] == [cells[1]]


def test_a_cell_is_this_process_s_while_it_is_done(tmp_path: Path) -> None:
    cells = plan(tmp_path).cells()
    others: list[list[Cell]] = []
    take(cells, lambda cell: others.append(take(cells)[0]))
    assert others[0] == [cells[1]]
    assert not list(tmp_path.rglob("*.lock"))


def test_what_another_process_has_done_meanwhile_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan(tmp_path).cells()
    done: list[Cell] = []
    monkeypatch.setattr(Cell, "state", lambda cell: "done" if cell in done else "missing")
    began, outcomes = take(cells, lambda cell: done.append(cells[1]))
    assert began == [cells[0]]
    assert [(outcome.cell, outcome.error, outcome.elsewhere) for outcome in outcomes] == [
        (cells[0], None, False),
        (cells[1], None, True),
    ]


def test_a_failure_of_before_is_tried_again_and_one_of_just_now_is_not(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"seeds": [0, 1]}).cells()
    before, _, now, _ = cells
    before.error_file.parent.mkdir(parents=True)
    before.error_file.write_text("ValueError: then\n")

    def execute(cell: Cell) -> None:
        if cell == before:
            now.error_file.write_text("Traceback\n\nValueError: now\n")

    began, outcomes = take(cells, execute)
    assert began == [cell for cell in cells if cell != now]
    assert [(outcome.cell, outcome.error) for outcome in outcomes if outcome.elsewhere] == [(now, "ValueError: now")]
    assert not before.error_file.exists()  # it has succeeded


def test_a_failed_cell_stops_no_other_and_leaves_its_traceback(tmp_path: Path) -> None:
    cells = plan(tmp_path).cells()

    def execute(cell: Cell) -> None:
        if cell == cells[0]:
            raise RuntimeError("no room\nleft")

    began, outcomes = take(cells, execute)
    assert began == list(cells)
    assert [outcome.error for outcome in outcomes] == ["RuntimeError: no room", None]
    assert cells[0].state() == "failed"
    assert cells[0].error_file.read_text().startswith("Traceback")


def test_a_killed_process_s_cell_is_taken_after_those_that_nobody_has_begun(tmp_path: Path) -> None:
    cells = plan(tmp_path).cells()
    process: subprocess.Popen[str] = hold(cells[0])
    try:
        assert take(cells)[0] == [cells[1]]
    finally:
        end(process)
    assert take(cells)[0] == [cells[1], cells[0]]


def test_an_interrupt_is_no_failure_of_the_cell(tmp_path: Path) -> None:
    def interrupt(cell: Cell) -> None:
        raise KeyboardInterrupt

    cells = plan(tmp_path).cells()
    with pytest.raises(KeyboardInterrupt):
        take(cells, interrupt)
    assert cells[0].state() == "missing"
    assert take(cells)[0] == list(cells)  # its lock is free


def test_a_process_on_another_machine_is_waited_for_until_it_shows_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan(tmp_path).cells()
    answers = [True, True, False]
    monkeypatch.setattr(CellLock, "is_unclear", lambda lock: answers.pop(0))
    monkeypatch.setattr(worker, "SECONDS_BETWEEN_LOOKS", 0.0)
    with CellLock(cells[0]).acquire():
        assert take(cells)[0] == [cells[1]]
    assert answers == []
