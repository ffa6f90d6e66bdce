"""Jobs in processes of this machine (`python -m varlora.compare.local_jobs`), and its processors and GPUs for each."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from varlora.compare.executors import JOBS, Job, Running
from varlora.compare.worker import warnings_in
from varlora.training.stopping import Stopped, sigterm_raises

logger = logging.getLogger(__name__)

SECONDS_TO_END = 10.0
"""That jobs which are stopped have before they are left to themselves."""


@contextmanager
def local_jobs(job: Job, count: int) -> Iterator[Running]:
    """Processes on this machine, among which its processors and GPUs are shared out.

    Args:
        job: what each does.
        count: how many.

    Yields:
        Whether one still runs. When the block is left early, they are stopped. What they have warned of is told at the
        end, once where several did.
    """
    devices, processes, logs = gpu_numbers(), list[subprocess.Popen[bytes]](), list[Path]()
    (job.output_dir / JOBS).mkdir(parents=True, exist_ok=True)
    try:
        for number in range(count):
            own = devices if job.launcher else devices[number % len(devices) :][:1] if devices else ()
            logs.append(job.output_dir / JOBS / f"{os.getpid()}_{number}.log")
            processes.append(start_process(job, logs[-1], {"CUDA_VISIBLE_DEVICES": ",".join(map(str, own))}))
        yield lambda: any(process.poll() is None for process in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        for warning in dict.fromkeys(text for log in logs for text in warnings_in(log)):
            logger.warning("%s", warning)


def start_process(job: Job, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process that does a job.

    Args:
        job: what it does.
        log: file for what it prints.
        environment: variables that it gets beside this process's.
    """
    with tempfile.TemporaryFile() as text, open(log, "ab") as output:
        text.write(json.dumps(dataclasses.asdict(job), default=str).encode())
        text.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", "varlora.compare.local_jobs"],
            stdin=text,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )


def read_job(text: str) -> Job:
    """The job that `start_process` has written."""
    values = json.loads(text)
    values |= {name: Path(values[name]) for name in ("output_dir", "directory")}
    return Job(**{**values, "cells": tuple(map(Path, values["cells"]))})


def threads_of_each(count: int) -> int | None:
    """Threads of each of some processes on this machine; None where OMP_NUM_THREADS says it."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, processors() // count)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_numbers() -> Sequence[int]:
    """The GPUs of this machine that this process may use.

    Raises:
        ValueError: CUDA_VISIBLE_DEVICES names them otherwise than by numbers.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return range(torch.cuda.device_count())
    try:
        return [int(name) for name in named.split(",") if name.strip()]
    except ValueError as error:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES is {named!r}; --executor local shares GPUs out by their numbers, as in 0,1."
        ) from error


def main() -> None:
    """Does the job on standard input. Ctrl-C is left to the command that started it, which then sends SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with sigterm_raises():
            read_job(sys.stdin.read())()
    except Stopped as stop:
        logging.error("%s", stop)
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
