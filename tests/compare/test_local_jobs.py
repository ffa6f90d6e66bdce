"""Jobs in processes of this machine: what each gets, what it is told, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from compare.plans import plan
from varlora.compare import Plan, local_jobs
from varlora.compare.driver import write_plan
from varlora.compare.executors import JOBS, Job
from varlora.compare.local_jobs import gpu_numbers, read_job, start_process, threads_of_each
from varlora.training.stopping import stop_requests


@pytest.fixture
def job(tmp_path: Path) -> Job:
    asked: Plan = plan(tmp_path)
    write_plan(asked, asked.cells())
    cells = tuple(cell.folder for cell in asked.cells())
    return Job(output_dir=asked.output_dir, cells=cells, failures={str(cells[0]): 12}, directory=Path.cwd(), threads=2)


class Process:
    """Stands for a process that runs until it is stopped."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.gpus, self.code = environment["CUDA_VISIBLE_DEVICES"], None

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code = -signal.SIGTERM


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """The processes that are started."""
    processes: list[Process] = []

    def start(job: Job, log: Path, environment: dict[str, str]) -> Process:
        assert log.parent == job.output_dir / JOBS
        assert log.parent.is_dir()
        processes.append(Process(environment))
        return processes[-1]

    monkeypatch.setattr(local_jobs, "start_process", start)
    return processes


def test_processors_and_gpus_are_shared_out(job: Job, monkeypatch: pytest.MonkeyPatch, started: list[Process]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    with local_jobs.local_jobs(job, 3):
        assert [process.gpus for process in started] == ["3", "5", "3"]
    with local_jobs.local_jobs(replace(job, launcher="accelerate launch"), 1):
        assert started[-1].gpus == "3,5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    with pytest.raises(ValueError, match="shares GPUs out by their numbers"):
        gpu_numbers()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(9), raising=False)
    assert threads_of_each(4) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_of_each(4) is None


def test_they_run_until_all_have_ended_and_are_stopped_when_left_early(job: Job, started: list[Process]) -> None:
    block = local_jobs.local_jobs(job, 2)
    running = block.__enter__()
    started[0].code = 0
    assert running()
    assert not block.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert [process.code for process in started] == [0, -signal.SIGTERM]
    assert not running()


def test_what_they_warn_of_is_told_once(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is a Python that logs as a job does."""
    said = "import logging; from varlora.compare.worker import log_to_stderr; log_to_stderr(); logging.info('begins')"
    warned = "; logging.warning('few rows'); logging.warning('few rows'); logging.error('stopped')"
    told = "; import warnings; from varlora.ivon.noise.controller import NoiseWarning"
    told += "; warnings.warn('no effect', NoiseWarning); warnings.warn('of a library')"
    lines = iter([said + warned, f"{said}{warned}; logging.warning('a gap'){told}"])

    def start(job: Job, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(log, "ab") as output:
            return subprocess.Popen([sys.executable, "-c", next(lines)], stderr=output)

    monkeypatch.setattr(local_jobs, "start_process", start)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with local_jobs.local_jobs(job, 2) as running:
        while running():
            time.sleep(0.1)
        assert not caplog.records
    assert [record.getMessage() for record in caplog.records] == ["few rows", "a gap", "no effect"]


def test_a_process_is_told_the_job_and_prints_into_its_log(job: Job, tmp_path: Path, monkeypatch: Any) -> None:
    """The program is Python's `cat`."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$@" "$MORE" >&2\nexec cat\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    log = tmp_path / "job.log"
    assert start_process(job, log, {"MORE": "of it"}).wait() == 0
    said, _, text = log.read_text().partition("\n")
    assert said == "-m varlora.compare.local_jobs of it"
    assert read_job(text) == job


@pytest.mark.parametrize(("act", "code"), [("ends", None), ("trains", 143), ("predicts", 143)])
def test_a_process_leaves_ctrl_c_to_the_command_and_ends_in_order_by_sigterm(
    job: Job, monkeypatch: pytest.MonkeyPatch, act: str, code: int | None
) -> None:
    happened: list[str] = []

    def do(job: Job) -> None:
        signal.raise_signal(signal.SIGINT)  # which a terminal sends to all of its processes
        try:
            if act == "trains":
                with stop_requests() as request:
                    signal.raise_signal(signal.SIGTERM)
                    happened.append("saves a checkpoint")
                    raise local_jobs.Stopped("stopped at step 1", request.number)
            if act == "predicts":
                signal.raise_signal(signal.SIGTERM)
        finally:
            happened.append("cleans up")

    _with_signals_kept(monkeypatch, job, do, code)
    assert happened == ["saves a checkpoint"] * (act == "trains") + ["cleans up"]


def _with_signals_kept(monkeypatch: pytest.MonkeyPatch, job: Job, do: Callable[[Job], None], code: int | None) -> None:
    monkeypatch.setattr(Job, "__call__", do)
    monkeypatch.setattr(local_jobs, "read_job", lambda text: job)
    monkeypatch.setattr(sys, "stdin", StringIO("{}"))
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if code is None:
            local_jobs.main()
        else:
            with pytest.raises(SystemExit) as stop:
                local_jobs.main()
            assert stop.value.code == code
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
