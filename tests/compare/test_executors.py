"""What starts workers makes no difference to what they do; what they are given, and what is missing."""

from __future__ import annotations

import importlib
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit

from compare.plans import plan
from varlora.compare import Cell, Plan, executors
from varlora.compare.driver import TABLES, poll_cells, write_plan
from varlora.compare.executors import (
    JOBS,
    Job,
    Running,
    import_ray,
    import_submitit,
    ray_jobs,
    submit_to_slurm,
)
from varlora.compare.worker import Outcome, failures_of
from varlora.training.stopping import Stopped, stop_requests


@pytest.fixture
def asked(tmp_path: Path) -> Plan:
    asked = plan(tmp_path)
    write_plan(asked, asked.cells())
    return asked


def job_of(asked: Plan, **changes: Any) -> Job:
    cells = tuple(cell.folder for cell in asked.cells())
    return replace(Job(output_dir=asked.output_dir, cells=cells, failures={}, directory=Path.cwd()), **changes)


def wait(asked: Plan, running: Running) -> list[Outcome]:
    cells = asked.cells()
    return list(poll_cells(cells, failures=failures_of(cells), running=running, started=lambda _: None, pause=0))


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that jobs do, which take no time; that of "ivon" fails."""
    done: list[Cell] = []

    def execute(cell: Cell) -> None:
        done.append(cell)
        if cell.method == "ivon":
            raise RuntimeError("out of memory")

    monkeypatch.setattr(executors, "execute_cell", execute)
    monkeypatch.setattr(Cell, "state", lambda cell: "failed" if cell.error_file.is_file() else _state(cell, done))
    return done


def _state(cell: Cell, done: list[Cell]) -> str:
    return "done" if cell in done else "missing"


def test_a_job_takes_its_cells_and_the_last_writes_the_tables(asked: Plan, executed: list[Cell]) -> None:
    cells = asked.cells()
    job_of(asked, cells=(cells[1].folder,))()
    assert executed == [cells[1]]
    assert not (asked.output_dir / TABLES).exists()
    job_of(asked, alone=True)()
    assert executed == [cells[1], cells[0]]  # what the other job failed at, just now, is not tried again
    assert (asked.output_dir / TABLES).is_file()


def test_a_job_of_a_queue_fails_with_its_cells_when_the_others_are_done(asked: Plan, executed: list[Cell]) -> None:
    with pytest.raises(RuntimeError, match="1 cells failed: llama / world / ivon / seed 0"):
        job_of(asked, cells=tuple(cell.folder for cell in reversed(asked.cells())), alone=True)()
    assert executed == list(asked.cells())
    assert (asked.output_dir / TABLES).is_file()


def test_a_job_that_is_preempted_is_queued_again_as_it_is(asked: Plan) -> None:
    job = job_of(asked)
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == job


@pytest.mark.parametrize("signals", [0, 1, 2])
def test_a_job_whose_time_is_up_ends_its_training_before_it_is_queued_again(
    asked: Plan, monkeypatch: pytest.MonkeyPatch, signals: int
) -> None:
    """Without a training, or at a second signal, it is queued at once."""
    happened: list[str] = []

    def requeue(number: int, frame: Any) -> None:
        happened.append("queued")
        raise SystemExit

    def train(cell: Cell) -> None:
        if signals == 0:
            signal.raise_signal(signal.SIGUSR2)
        with stop_requests() as request:
            for _ in range(signals):
                signal.raise_signal(signal.SIGUSR2)
            assert request.number
            happened.append("saved")
            raise Stopped("stopped", request.number)

    monkeypatch.setattr(executors, "execute_cell", train)
    former = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit):
            job_of(asked)()
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert happened == (["saved", "queued"] if signals == 1 else ["queued"])
    assert not list(asked.output_dir.rglob("*.lock"))


def test_a_launcher_starts_what_does_a_cell(asked: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(executors, "launch_cell", lambda *arguments: launched.append(arguments))
    job_of(asked, launcher="torchrun")()
    assert launched == [(cell, asked.output_dir, "torchrun") for cell in asked.cells()]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script that was queued last, by an sbatch that queues nothing."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text(f"#!/bin/sh\n/bin/cp $1 {folder}/submitted\necho Submitted batch job 12\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder / "submitted"


def test_slurm_is_given_an_array_of_the_job(asked: Plan, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs sbatch and srun"):
        submit_to_slurm(job_of(asked), 2, {"time": 720})
    monkeypatch.setenv("PATH", str(slurm.parent))
    assert submit_to_slurm(job_of(asked), 2, {"partition": "gpu", "time": 720, "gpus_per_node": 1}) == "12"
    lines = slurm.read_text().splitlines()
    for expected in ("array=0-1%2", "partition=gpu", "time=720", "gpus-per-node=1", "job-name=varlora"):
        assert f"#SBATCH --{expected}" in lines
    pickles = sorted((asked.output_dir / JOBS).glob("12_*_submitted.pkl"))
    assert [submitit.helpers.DelayedSubmission.load(file).function for file in pickles] == [job_of(asked)] * 2
    assert "cpus-per-task" not in "\n".join(lines)
    with pytest.raises(ValueError, match=r"Unavailable parameter\(s\): \['partitoin'\]"):
        submit_to_slurm(job_of(asked), 2, {"time": 720, "partitoin": "gpu"})
    for options, said in (({}, "no time is given"), ({"time": 9, "cpus_per_task": "all"}, "cpus_per_task is 'all'")):
        with pytest.raises(ValueError, match=said):
            submit_to_slurm(job_of(asked), 2, options)


def test_a_slurm_worker_computes_with_the_processors_that_it_asks_for(
    asked: Plan, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    submit_to_slurm(job_of(asked), 1, {"time": 9, "cpus_per_task": 4})
    lines = slurm.read_text().splitlines()
    assert "#SBATCH --cpus-per-task=4" in lines
    assert any(line.startswith("srun ") and " --cpus-per-task=4 " in line for line in lines)
    (pickle,) = (asked.output_dir / JOBS).glob("12_submitted.pkl")
    assert submitit.helpers.DelayedSubmission.load(pickle).function == job_of(asked, threads=4)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    submit_to_slurm(job_of(asked), 1, {"time": 9, "cpus_per_task": 4})
    assert submitit.helpers.DelayedSubmission.load(pickle).function == job_of(asked)


class FakeRay:
    """As much of Ray as is used; the tasks run when it is asked which are not done."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.tasks = 0
        self.up = False

    def init(self, **_: Any) -> None:
        self.up = True

    def shutdown(self) -> None:
        self.up = False

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": 2.0, "CPU": 8.0}

    def remote(self, **options: Any) -> Any:
        self.options = options

        def decorated(function: Any) -> Any:
            def submitted(*arguments: Any) -> Any:
                self.tasks += 1
                return lambda: function(*arguments)

            return SimpleNamespace(remote=submitted)

        return decorated

    def wait(self, tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert self.up
        for task in tasks:
            task()
        return tasks, []


@pytest.mark.parametrize(("count", "tasks"), [(1, 1), (None, 2)])
def test_ray_is_given_tasks_that_take_cells(
    asked: Plan, executed: list[Cell], monkeypatch: pytest.MonkeyPatch, count: int | None, tasks: int
) -> None:
    fake = FakeRay()
    monkeypatch.setattr(executors, "import_ray", lambda: fake)
    with ray_jobs(job_of(asked), count) as running:
        outcomes = wait(asked, running)
    assert executed == list(asked.cells())
    assert [outcome.error for outcome in outcomes] == [None, "RuntimeError: out of memory"]
    assert fake.options == {"num_cpus": 1, "num_gpus": 1.0, "max_calls": 1, "max_retries": -1}
    assert (fake.tasks, fake.up) == (tasks, False)


@pytest.mark.parametrize(("address", "said"), [(None, "does not start on this machine"), ("10.0.0.1:1", "10.0.0.1:1")])
def test_a_ray_that_does_not_come_up_is_said(
    asked: Plan, monkeypatch: pytest.MonkeyPatch, address: str | None, said: str
) -> None:
    def time_out(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(executors, "import_ray", lambda: SimpleNamespace(init=time_out))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=f"{said}.*The current node timed out"):
        with ray_jobs(job_of(asked), 1):
            pass


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"--executor ray needs ray, .* pip install 'varlora\[ray\]'"):
        import_ray()
    with pytest.raises(ValueError, match=r"--executor slurm needs submitit, .* pip install 'varlora\[slurm\]'"):
        import_submitit()


@pytest.mark.slow
def test_ray_itself_does_the_cells(asked: Plan) -> None:
    pytest.importorskip("ray")
    with ray_jobs(job_of(asked, threads=1), None) as running:
        outcomes = wait(asked, running)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [cell.state() for cell in asked.cells()] == ["done", "done"]
