"""Where cells run makes no difference to what comes out; one that fails stops no other."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compare.plans import plan
from compare.test_worker import assert_same_predictions
from varlora.compare import Cell, engines
from varlora.compare.engines import Engine, Inline, Outcome, Ray, Workers, import_ray
from varlora.compare.worker import write_cells

BROKEN = {
    "methods.broken": {"settings": {"method": "adamw", "lora_target_modules": "qproj"}, "rows": {"Broken": {}}},
    "methods.ivon.rows.tuned": {"tune": True},
}


def run_all(engine: Engine, cells: tuple[Cell, ...]) -> list[Outcome]:
    return list(engine.run(cells, lambda cell: None))


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, ...]:
    """A plan's cells, run in this process; the second fails."""
    folder = tmp_path_factory.mktemp("inline")
    order = {"broken": 1, "ivon": 2, "adamw": 0}
    cells = tuple(sorted(plan(folder, BROKEN).cells(), key=lambda cell: order[cell.method]))
    outcomes = run_all(Inline(), cells)
    assert [outcome.cell for outcome in outcomes] == list(cells)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    return cells


def test_a_cell_that_fails_stops_no_other_and_leaves_its_traceback(inline: tuple[Cell, ...]) -> None:
    assert [cell.state() for cell in inline] == ["done", "failed", "done"]
    text = inline[1].error_file.read_text()
    assert text.startswith("Traceback")
    assert "lora_target_modules names 'qproj', which the model lacks; did you mean 'q_proj'?" in text


def test_the_error_file_goes_when_it_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = plan(tmp_path).cells()[0]

    def fail(cell: Cell, progress: bool) -> None:
        raise RuntimeError("no room\nleft")

    monkeypatch.setattr(engines, "execute_cell", fail)
    assert [outcome.error for outcome in run_all(Inline(), (one,))] == ["RuntimeError: no room"]
    assert one.state() == "failed"
    monkeypatch.setattr(engines, "execute_cell", lambda cell, progress: None)
    assert [outcome.error for outcome in run_all(Inline(), (one,))] == [None]
    assert not one.error_file.exists()


def test_an_interrupt_is_no_failure_of_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(cell: Cell, progress: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "execute_cell", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_all(Inline(), plan(tmp_path).cells())


def test_workers_give_bit_for_bit_what_this_process_gives(
    inline: tuple[Cell, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here
    asked = plan(tmp_path, BROKEN)
    good = asked.cells()[1]  # one of them: it costs the start of a process
    asked.output_dir.mkdir()
    write_cells([good], asked.output_dir)
    outcomes = run_all(Workers(output_dir=asked.output_dir), (good,))
    assert [(outcome.cell.method, outcome.error) for outcome in outcomes] == [("ivon", None)]
    assert good.state() == "done"
    assert not list(tmp_path.rglob("*.output.txt"))
    assert_same_predictions(inline[2], good)


def test_a_worker_that_fails_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys\nif 'ivon' in sys.argv[2]: raise ValueError('no such layer')"
    monkeypatch.setattr(Workers, "command", lambda self: [sys.executable, "-c", code])
    began: list[str] = []
    engine = Workers(output_dir=tmp_path, at_once=2)
    cells = plan(tmp_path).cells()
    outcomes = {outcome.cell.method: outcome for outcome in engine.run(cells, lambda cell: began.append(cell.method))}
    assert began == ["adamw", "ivon"]
    assert {method: outcome.error for method, outcome in outcomes.items()} == {
        "adamw": None,
        "ivon": "ValueError: no such layer",
    }
    assert cells[1].state() == "failed"
    assert cells[1].error_file.read_text().startswith("Traceback")
    assert not list(tmp_path.rglob("*.output.txt"))


SLEEPER = [sys.executable, "-c", "import time; print('about to sleep', flush=True); time.sleep(600)"]


def test_leaving_early_stops_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SECONDS_TO_END", 0.5)
    monkeypatch.setattr(Workers, "command", lambda self: SLEEPER)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def interrupt(cell: Cell) -> None:
        if cell.method == "ivon":
            raise KeyboardInterrupt

    engine = Workers(output_dir=tmp_path, at_once=2)
    with pytest.raises(KeyboardInterrupt):
        for _ in engine.run(plan(tmp_path).cells(), interrupt):
            pass
    assert [process.poll() is not None for process in started] == [True]


def test_a_killed_worker_is_a_failed_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, signal; print('half way', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(Workers, "command", lambda self: [sys.executable, "-c", code])
    one = plan(tmp_path).cells()[0]
    outcomes = run_all(Workers(output_dir=tmp_path), (one,))
    assert outcomes[0].error == "killed by signal 9"
    assert one.error_file.read_text() == "half way\n\n(the worker ended: killed by signal 9)\n"


def test_workers_inherit_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    code = f"import os; os.write({writing}, b'held')"
    monkeypatch.setattr(Workers, "command", lambda self: [sys.executable, "-c", code])
    outcomes = run_all(Workers(output_dir=tmp_path, inherited=(writing,)), (plan(tmp_path).cells()[0],))
    assert outcomes[0].error is None
    os.close(writing)
    with open(reading, "rb") as stream:
        assert stream.read() == b"held"


def test_processors_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(9), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    engine = Workers(output_dir=tmp_path, at_once=4)
    shared = [engine.environment(slot) for slot in range(4)]
    assert {one["OMP_NUM_THREADS"] for one in shared} == {"2"}
    assert [one["CUDA_VISIBLE_DEVICES"] for one in shared] == ["3", "5", "3", "5"]
    assert replace(engine, launcher="accelerate launch").environment(0)["CUDA_VISIBLE_DEVICES"] == "3, 5"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert engine.environment(0)["OMP_NUM_THREADS"] == "7"


def test_a_launcher_stands_before_the_module(tmp_path: Path) -> None:
    found = Workers(output_dir=tmp_path, launcher="accelerate launch --num_processes 8").command()
    assert Path(found[0]).name == "accelerate"
    assert Path(found[0]).is_file()
    assert found[1:] == ["launch", "--num_processes", "8", "-m", "varlora.compare.worker"]
    assert Workers(output_dir=tmp_path).command() == [sys.executable, "-m", "varlora.compare.worker"]
    with pytest.raises(ValueError, match="begins with 'acelerate', which is no program here"):
        Workers(output_dir=tmp_path, launcher="acelerate launch").command()


class FakeRay:
    """As much of Ray as the engine uses; a task runs when its result is asked for."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.most, self.open, self.up = 0, 0, False

    def init(self, **_: Any) -> None:
        self.up = True

    def shutdown(self) -> None:
        self.up = False

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": 2.0}

    def remote(self, **options: Any) -> Any:
        self.options = options

        def decorated(function: Any) -> Any:
            def submitted(*arguments: Any) -> Any:
                self.open += 1
                self.most = max(self.most, self.open)
                return lambda: function(*arguments)

            return SimpleNamespace(remote=submitted)

        return decorated

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: Any) -> Any:
        self.open -= 1
        return task()


@pytest.mark.parametrize("limit", [1, None])
def test_ray_is_given_one_task_for_each_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    fake = FakeRay()
    monkeypatch.setattr(engines, "import_ray", lambda: fake)
    threads: list[int] = []  # a task may set them: its process is its own
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def execute(cell: Cell) -> None:
        assert fake.up
        if cell.method == "ivon":
            raise RuntimeError("out of memory")
        if cell.method == "broken":
            raise fake.exceptions.RayError("the machine died")  # as if from Ray itself

    monkeypatch.setattr(engines, "execute_cell", execute)
    cells = plan(tmp_path, BROKEN).cells()
    outcomes = run_all(Ray(limit=limit, processors=2), cells)
    assert [outcome.error for outcome in outcomes] == [
        None,
        "RuntimeError: out of memory",
        "RayError: the machine died",
    ]
    assert fake.options == {"num_cpus": 2, "num_gpus": 1.0, "max_calls": 1, "max_retries": 0}
    assert threads in ([2, 2, 2], [])  # none beside a GPU
    assert (fake.most, fake.up) == (3 if limit is None else 1, False)
    assert cells[1].error_file.read_text().startswith("Traceback")


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'varlora\[ray\]'"):
        import_ray()


@pytest.mark.slow
def test_ray_itself_gives_bit_for_bit_what_this_process_gives(inline: tuple[Cell, ...], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    asked = plan(tmp_path, BROKEN)
    cells = asked.cells()
    outcomes = run_all(Ray(), cells)
    assert len(outcomes) == 3
    assert {cell.method: cell.state() for cell in cells} == {"adamw": "done", "ivon": "done", "broken": "failed"}
    for first in (inline[0], inline[2]):
        assert_same_predictions(first, next(cell for cell in cells if cell.method == first.method))


@pytest.mark.slow
def test_two_processes_under_accelerate_make_one_cell(tmp_path: Path) -> None:
    asked = plan(tmp_path)
    one = asked.cells()[0]
    asked.output_dir.mkdir()
    write_cells([one], asked.output_dir)
    launcher = "accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    outcomes = run_all(Workers(output_dir=asked.output_dir, launcher=launcher), (one,))
    assert outcomes[0].error is None, one.error_file.read_text()
    assert one.state() == "done"
