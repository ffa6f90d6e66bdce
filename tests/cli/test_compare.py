"""`varlora compare`: what it shows, runs, refuses and leaves, and that a kill changes nothing."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.progress import Progress
from transformers import TrainerCallback

from cli.workshop import Outcome
from compare.plans import plan, written
from compare.test_worker import assert_same_predictions
from varlora.cli import main
from varlora.cli.cells import duration
from varlora.cli.compare import _TimeLeft
from varlora.compare import Cell, executors, local_jobs
from varlora.compare.cell_lock import CellLock
from varlora.compare.cells_file import read_cells
from varlora.compare.driver import Watch
from varlora.compare.executors import Job
from varlora.compare.timer import Timer
from varlora.runs.run import run, train

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(["compare", str(written(folder)), "--output_dir", str(folder / "out"), "--no_progress"]) == 0
    return folder / "out"


def numbers(folder: Path) -> Any:
    """What study.json says, without times and paths."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if "seconds" not in k and k not in ("costs", "command")}
        return [kept(item) for item in value] if isinstance(value, list) else value

    return kept(json.loads((folder / "study.json").read_text()))


def test_dry_run_shows_the_cells_and_makes_nothing(call: Call, tmp_path: Path) -> None:
    file = written(tmp_path, {"seeds": [0, 1]})
    done = call("compare", file, "--output_dir", tmp_path / "out", "--dry_run")
    assert done.code == 0
    assert "4 cells in" in done.out
    assert "4 missing." in done.out
    assert "adamw" in done.out
    assert "About" not in done.out  # nothing like them has been finished
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[], ["--dry_run"]])
@pytest.mark.parametrize("inner", ["", "inner"])
def test_a_file_is_no_output_dir(call: Call, tmp_path: Path, words: list[str], inner: str) -> None:
    (tmp_path / "taken").write_text("mine")
    done = call("compare", written(tmp_path), "--output_dir", tmp_path / "taken" / inner, *words)
    assert done.code == 1
    assert f"{tmp_path / 'taken'} is a file. Choose another output_dir (--output_dir)" in done.err
    assert "Errno" not in done.err


def test_the_time_is_that_of_finished_cells(call: Call, undisturbed: Path, tmp_path: Path) -> None:
    for cell in read_cells(undisturbed):
        facts = json.loads((cell.folder / "run.json").read_text())
        facts["seconds"] = {"train": 290.0, "predict/test/mean": 10.0}
        there = tmp_path / "out" / cell.folder.relative_to(undisturbed)
        there.mkdir(parents=True)
        for name in ("config.yaml", "metrics.json"):
            (there / name).write_bytes((cell.folder / name).read_bytes())
        (there / "run.json").write_text(json.dumps(facts))
    file = written(tmp_path, {"seeds": [0, 1, 2]})
    words = ("compare", file, "--output_dir", tmp_path / "out", "--dry_run", "--only", "seed=1,2")
    assert "About 20 min for 4 cells, 1 at a time, by finished cells." in call(*words).out
    assert "About 10 min for 4 cells, 2 at a time" in call(*words, "--executor", "local", "--workers", 2).out


def test_what_is_done_is_not_done_again(call: Call, undisturbed: Path, tmp_path: Path) -> None:
    assert {name.name for name in undisturbed.iterdir() if name.is_file()} == {
        "cells.json",
        "plan.yaml",
        "report.html",
        "study.json",
        "tables.md",
    }
    file = written(tmp_path)
    stamps = {f: f.stat().st_mtime_ns for f in (undisturbed / "llama").rglob("*")}
    before = numbers(undisturbed)
    done = call("compare", file, "--output_dir", undisturbed)
    assert done.code == 0
    assert "2 cells in" in done.out
    assert "2 done." in done.out
    assert "IVON, 2 samples" in done.out
    assert "1/2" not in done.err
    assert re.search(f"which cells share, take [0-9]+ MiB in {undisturbed / 'frozen_layers'}", done.out)
    assert {f: f.stat().st_mtime_ns for f in (undisturbed / "llama").rglob("*")} == stamps
    assert numbers(undisturbed) == before
    # another setting is another cell, beside the first
    other = written(tmp_path, {"settings.learning_rate": 2e-3})
    assert "2 missing." in call("compare", other, "--output_dir", undisturbed, "--dry_run").out


def test_a_plans_own_copy_runs_it_again(call: Call, undisturbed: Path) -> None:
    done = call("compare", undisturbed / "plan.yaml", "--dry_run")
    assert (done.code, "2 done." in done.out) == (0, True)


def test_a_failed_cell_is_told_and_the_others_are_kept(call: Call, tmp_path: Path) -> None:
    broken = {"settings": {"method": "adamw", "lora_target_modules": "qproj"}, "rows": {"Broken": {"mode": "mean"}}}
    file = written(tmp_path, {"methods": {"broken": broken, "adamw": _adamw()}, "settings.max_steps": 1})
    done = call("compare", file, "--output_dir", tmp_path / "out", "--no_progress")
    assert done.code == 1
    assert "1 of 2 cells failed; the same command tries them again." in done.err
    cells = {cell.method: cell for cell in read_cells(tmp_path / "out")}
    assert str(cells["broken"].error_file) in done.err.replace(" ", "")
    assert (cells["broken"].state(), cells["adamw"].state()) == ("failed", "done")
    assert "1/2 llama / world / broken / seed 0" in done.err
    assert "2/2 llama / world / adamw / seed 0" in done.err
    source = "source: generated: varlora's task of multiple choice (the demo's), seed 0; rows: 16 train, 24 validation"
    assert source not in done.err  # notes of the runs are in the report
    assert source in " ".join(done.out.split())
    assert "AdamW" in (tmp_path / "out" / "tables.md").read_text()


def _adamw() -> dict[str, Any]:
    return {"settings": {"method": "adamw"}, "rows": {"AdamW": {"mode": "mean"}}}


def test_only_some_cells_are_run(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(executors, "execute_cell", lambda cell: ran.append(cell.title))
    file = written(tmp_path, {"seeds": [0, 1, 2]})
    done = call("compare", file, "--output_dir", tmp_path / "out", "--only", "seed=2,0", "method=ivon")
    assert ran == ["llama / world / ivon / seed 0", "llama / world / ivon / seed 2"]
    assert len(read_cells(tmp_path / "out")) == 6
    assert done.code == 0


def test_ctrl_c_says_how_to_go_on(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(cell: Cell) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executors, "execute_cell", interrupt)
    done = call("compare", written(tmp_path), "--output_dir", tmp_path / "out")
    assert done.code == 130
    assert "the same command goes on, an unfinished training from its last checkpoint" in done.err


def test_a_warning_of_every_cell_is_shown_once(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(cell: Cell) -> None:
        logging.getLogger("varlora.runs").warning("%d validation rows are few", 8)
        logging.getLogger("varlora.runs").warning("of %s alone", cell.method)

    monkeypatch.setattr(executors, "execute_cell", warn)
    for _ in range(2):  # once a comparison
        done = call("compare", written(tmp_path), "--output_dir", tmp_path / "out", "--no_progress")
        told = [done.err.count(f"warning: {text}") for text in ("8 validation rows are few", "of adamw", "of ivon")]
        assert told == [1, 1, 1]
        assert "2/2 " in done.err


def test_cells_of_other_processes_are_left_to_them(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(executors, "execute_cell", lambda cell: ran.append(cell.method))
    file, first = written(tmp_path), plan(tmp_path).cells()[0]
    with CellLock(first).acquire():
        assert "1 running, 1 missing." in call("compare", file, "--output_dir", tmp_path / "out", "--dry_run").out
        done = call("compare", file, "--output_dir", tmp_path / "out")
    assert (done.code, ran) == (0, ["ivon"])
    assert f"Cells that run elsewhere:\n  {first.title}: process {os.getpid()} on " in done.out
    assert f"varlora report {tmp_path / 'out'}" in done.out.replace("\n", "")
    assert not (tmp_path / "out" / "tables.md").exists()  # the other process writes them
    assert call("compare", file, "--output_dir", tmp_path / "out").code == 0
    assert ran == ["ivon", "adamw", "ivon"]  # whose states are missing yet
    assert (tmp_path / "out" / "tables.md").exists()


def fork(job: Job, log: Path, environment: dict[str, str]) -> SimpleNamespace:
    """Stands for `start_process`: a process that is forked from this one does the job, and imports nothing anew."""

    def do_job() -> None:
        logging.getLogger().handlers.clear()
        logging.getLogger("varlora").setLevel(logging.NOTSET)
        sys.stderr = log.open("a", buffering=1)
        job()

    child = multiprocessing.get_context("fork").Process(target=do_job)
    child.start()
    return SimpleNamespace(poll=lambda: child.exitcode, terminate=child.terminate)


def test_two_processes_do_a_plan_between_them_to_the_same_numbers(
    call: Call, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_jobs, "start_process", fork)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here
    words = ("compare", written(tmp_path), "--output_dir", tmp_path / "out", "--no_progress")
    done = call(*words, "--executor", "local", "--workers", 2)
    assert done.code == 0, done.err
    logs = [file.read_text() for file in (tmp_path / "out" / "jobs").glob("*.log")]
    assert len(logs) == 2
    cells = read_cells(tmp_path / "out")
    assert [sum(log.count(f"{cell.title}: begins") for log in logs) for cell in cells] == [1, 1]
    assert "2/2 " in done.err
    for one, other in zip(read_cells(undisturbed), cells, strict=True):
        assert_same_predictions(one, other)
    assert numbers(tmp_path / "out") == numbers(undisturbed)
    assert not list(tmp_path.rglob("*.lock"))


def test_jobs_are_put_into_slurm_s_queue_and_not_waited_for(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[Any] = []
    monkeypatch.setattr(executors, "submit_to_slurm", lambda *given: submitted.append(given) or "12")
    words = ("--executor", "slurm", "--workers", 8, "--slurm", "partition=gpu", "time=720")
    done = call("compare", written(tmp_path), "--output_dir", tmp_path / "out", *words)
    assert done.code == 0
    ((job, count, options),) = submitted
    assert (count, options) == (2, {"partition": "gpu", "time": 720})
    assert job.alone
    assert job.cells == tuple(cell.folder for cell in read_cells(tmp_path / "out"))
    assert "Slurm job 12 has 2 workers for 2 cells." in done.out


def test_other_versions_cells_are_offered_and_taken_when_named(
    call: Call, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("varlora.compare.plan", "varlora.compare.code_version"):
        monkeypatch.setattr(f"{module}.code_version", lambda method, task: "0123456789")
    file = written(tmp_path)
    made_by = [cell.code_version for cell in read_cells(undisturbed)]
    done = call("compare", file, "--output_dir", undisturbed, "--dry_run")
    assert "2 missing." in done.out
    for version in made_by:
        assert f"1 of the missing cells were made by version {version}" in done.err
        assert f"--code_version {version}" in done.err
    named = [word for version in made_by for word in ("--code_version", version)]
    done = call("compare", file, "--output_dir", undisturbed, "--dry_run", *named)
    assert "2 done." in done.out
    assert f"1 cells were made by version {made_by[0]} of the code, not by this one" in done.err
    done = call("compare", file, "--output_dir", undisturbed, "--code_version", "9876543210")
    assert done.code == 1
    others = ", ".join(sorted(made_by))
    assert f"9876543210: no cell of this plan was made by it; other versions that made some: {others}." in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", 2], "--workers has no effect on --executor inline"),
        (["--executor", "local", "--workers", 0], "--workers is 0; it must be at least 1"),
        (["--executor", "slurm"], "add --workers N"),
        (["--slurm", "partition=gpu"], "--slurm has no effect on --executor inline"),
        (["--executor", "slurm", "--workers", 1, "--slurm", "gpu"], "--slurm 'gpu' must be KEY=VALUE"),
        (["--executor", "slurm", "--workers", 1, "--dry_run", "--slurm", "gpu"], "--slurm 'gpu' must be KEY=VALUE"),
        (["--executor", "slurm", "--workers", 1], "no time is given; say how many minutes"),
        (["--executor", "slurm", "--workers", 1, "--slurm", "time=12:00:00"], "time is '12:00:00'; say how many min"),
        (["--launcher", "no-such-program"], "begins with 'no-such-program'"),
        (["--only", "method=ivn"], "no method 'ivn'; did you mean 'ivon'"),
        (["--small"], "has no section `small`"),
        (["--data", "nowhere"], ""),
    ],
)
def test_options_that_do_not_fit_are_refused(call: Call, tmp_path: Path, words: list[object], said: str) -> None:
    changes = {"tasks": {"sst2": {}}} if words[0] == "--data" else {}
    done = call("compare", written(tmp_path, changes), "--output_dir", tmp_path / "out", *words)
    assert done.code == 1
    assert (said or "there is no folder sst2 in nowhere; it holds none.") in done.err


def test_durations() -> None:
    assert [duration(s) for s in (8.2, 90, 12500, 190000)] == ["8 s", "2 min", "3.5 h", "2.2 days"]


def test_the_bar_tells_the_time_left_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    cells = plan(tmp_path, {"seeds": [0, 1]}).cells()
    timer = Timer(())
    for cell in cells:
        timer.add(cell, 300)
    watch = Watch(timer=timer, at_once=1, waiting=list(cells))
    watch.started(cells[0])
    bar = Progress()
    bar.add_task("", watch=None)
    task = bar.tasks[0]
    assert str(_TimeLeft().render(task)) == ""
    bar.update(task.id, watch=watch)
    assert str(_TimeLeft().render(task)) == "about 20 min left"
    now += 120
    assert str(_TimeLeft().render(task)) == "about 18 min left"


def begin(folder: Path, changes: dict[str, Any], *words: str) -> subprocess.Popen[bytes]:
    """`varlora compare` as a process."""
    command = [sys.executable, "-m", "varlora", "compare", str(written(folder, changes)), "--no_progress"]
    return subprocess.Popen(
        [*command, "--output_dir", str(folder / "out"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


class KillAfter(TrainerCallback):
    """Kills this process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def compare_and_die(folder: Path, step: int) -> None:
    """`varlora compare` in a process that is killed after a step of its second cell's training."""
    child = os.fork()
    if child == 0:
        trainings = itertools.count(1)

        def train_and_die(*given: Any, **how: Any) -> Any:
            killing = [KillAfter(step)] if next(trainings) == 2 else []
            return train(*given, callbacks=killing, **how)

        run.__globals__["train"] = train_and_die
        main(["compare", str(written(folder)), "--output_dir", str(folder / "out"), "--no_progress"])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_killed_comparison_goes_on_to_the_same_numbers(call: Call, undisturbed: Path, tmp_path: Path) -> None:
    compare_and_die(tmp_path, step=5)  # of 6, with a checkpoint of every second
    assert [cell.state() for cell in plan(tmp_path).cells()] == ["done", "unfinished"]
    done = call("compare", written(tmp_path), "--output_dir", tmp_path / "out", "--no_progress")
    assert done.code == 0, done.err
    assert "1 done, 1 unfinished." in done.out
    for one, other in zip(read_cells(undisturbed), read_cells(tmp_path / "out"), strict=True):
        assert_same_predictions(one, other)
    assert numbers(tmp_path / "out") == numbers(undisturbed)


@pytest.mark.slow
def test_ten_random_kills_change_nothing(call: Call, tmp_path: Path) -> None:
    changes = {"settings.max_steps": 150, "seeds": [0, 1]}
    done = call("compare", written(tmp_path / "a", changes), "--output_dir", tmp_path / "a" / "out", "--no_progress")
    assert done.code == 0, done.err
    moments = random.Random(0)
    for _ in range(10):
        process = begin(tmp_path / "b", changes, "--executor", "local", "--workers", "2")
        time.sleep(moments.uniform(5, 45))
        kill(process)
    done = call("compare", written(tmp_path / "b", changes), "--output_dir", tmp_path / "b" / "out", "--no_progress")
    assert done.code == 0, done.err
    for one, other in zip(read_cells(tmp_path / "a" / "out"), read_cells(tmp_path / "b" / "out"), strict=True):
        assert_same_predictions(one, other)
    assert numbers(tmp_path / "a" / "out") == numbers(tmp_path / "b" / "out")
