"""Where workers run: in this process, in others of this machine (`varlora.compare.local_jobs`), in Slurm's or in Ray's.

Each executor starts N times the same job, and each job takes cells until none is free. So it makes no difference to a
comparison what started its workers, nor whether all of them were started by one command.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from varlora.compare.cell import Cell
from varlora.compare.cells_file import read_cells
from varlora.compare.driver import PLAN, cells_elsewhere, finish
from varlora.compare.launched import launch_cell
from varlora.compare.plan_file import read_plan
from varlora.compare.worker import Outcome, execute_cell, log_to_stderr, take_cells
from varlora.training.stopping import Stopped, ask_to_stop

logger = logging.getLogger(__name__)

JOBS = "jobs"
"""Folder of an output folder for the jobs' logs."""
TIMES_REQUEUED = 1000
SECONDS_TO_SAVE = 60.0
"""That a training has to end after its step, of the 90 that submitit leaves between the signal and the end."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A worker in a process of its own.

    Attributes:
        output_dir: the folder with plan.yaml and cells.json.
        cells: folders of the cells to take from.
        failures: as of `take_cells`.
        launcher: as of `launch_cell`; "" does cells in the job's own process.
        directory: the working directory, from which the settings' paths start.
        threads: for torch; None leaves it to torch.
        alone: whether no command waits for it: the job that ends last writes the tables, and one with a failed cell
            fails.
    """

    output_dir: Path
    cells: tuple[Path, ...]
    failures: Mapping[str, int]
    launcher: str = ""
    directory: Path
    threads: int | None = None
    alone: bool = False

    def __call__(self) -> None:
        """Takes cells until none is free.

        Raises:
            RuntimeError: the job is alone and cells failed, after all that can be done is done: a queue then says so.
        """
        os.chdir(self.directory)
        log_to_stderr()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        failed = []
        with checkpoint_before_requeue():
            for outcome in self.take_cells(lambda cell: logger.info("%s: begins", cell.title)):
                where = " elsewhere" if outcome.elsewhere else ""
                logger.info("%s: %s", outcome.cell.title, outcome.error or f"done{where}")
                if outcome.error is not None and not outcome.elsewhere:
                    failed.append(outcome.cell.title)
        if self.alone:
            cells = read_cells(self.output_dir)
            if not cells_elsewhere(cells):
                finish(read_plan(self.output_dir / PLAN, output_dir=self.output_dir), cells)
        if self.alone and failed:
            raise RuntimeError(f"{len(failed)} cells failed: {', '.join(failed)}")

    def take_cells(self, started: Callable[[Cell], None]) -> Generator[Outcome, None, None]:
        """See `varlora.compare.worker.take_cells`."""
        cells = [cell for cell in read_cells(self.output_dir) if cell.folder in self.cells]
        return take_cells(cells, failures=self.failures, started=started, execute=self._execute)

    def checkpoint(self) -> Any:
        """What submitit puts into the queue again when the job is preempted or its time is up: the same job.

        Its locks are freed as its process ends, and a training goes on from its last checkpoint.
        """
        return import_submitit().helpers.DelayedSubmission(self)

    def _execute(self, cell: Cell) -> None:
        if self.launcher:
            launch_cell(cell, self.output_dir, self.launcher)
        else:
            execute_cell(cell)


@contextmanager
def checkpoint_before_requeue() -> Iterator[None]:
    """Within the block a training ends after its step, with a checkpoint, before submitit queues its job again.

    submitit's handler of SIGUSR2 ends the process where it stands. It is left to act when the training has ended, at a
    second signal, which comes after `SECONDS_TO_SAVE`, and where there is no training.
    """
    number = getattr(signal, "SIGUSR2", None)
    requeue = None if number is None else signal.getsignal(number)
    if number is None or not callable(requeue) or threading.current_thread() is not threading.main_thread():
        yield
        return
    again = threading.Timer(SECONDS_TO_SAVE, os.kill, (os.getpid(), number))
    again.daemon = True

    def stop(number: int, frame: FrameType | None) -> None:
        if again.ident is not None or not ask_to_stop():
            requeue(number, frame)
        else:
            again.start()

    signal.signal(number, stop)
    try:
        yield
    except Stopped:
        if again.ident is None:
            raise
        requeue(number, None)
    finally:
        again.cancel()
        signal.signal(number, requeue)


Running = Callable[[], bool]
"""Whether any of the jobs that were started still runs."""


def submit_to_slurm(job: Job, count: int, options: Mapping[str, Any]) -> str:
    """Puts an array of jobs into Slurm's queue, and does not wait for them.

    Args:
        job: what each does.
        count: how many.
        options: of `submitit.SlurmExecutor`, such as `partition`, `time` (minutes), `gpus_per_node`, `mem`; of
            `cpus_per_task` each worker computes with so many threads.

    Returns:
        The number of the job, or of the array.

    Raises:
        ValueError: submitit is not installed, there is no Slurm here, or an option is missing or not known.
    """
    check_slurm_options(options)
    submitit = import_submitit()
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError("--executor slurm needs sbatch and srun, which are not here; start it on a Slurm cluster.")
    executor = submitit.SlurmExecutor(job.output_dir / JOBS, max_num_timeout=TIMES_REQUEUED)
    if (processors := options.get("cpus_per_task")) is not None:  # which srun does not take from sbatch since 22.05
        options = {"srun_args": [f"--cpus-per-task={processors}"], **options}
        job = job if "OMP_NUM_THREADS" in os.environ else replace(job, threads=int(processors))
    executor.update_parameters(**{"job_name": "varlora", **options})
    return str(executor.submit_array([job] * count)[0].job_id).partition("_")[0]


def check_slurm_options(options: Mapping[str, Any]) -> None:
    """Whether jobs with these options can run, and be queued again when their time is up.

    Raises:
        ValueError: a number is missing or none.
    """
    if not isinstance(options.get("time"), int):
        given = f"time is {options['time']!r}" if "time" in options else "no time is given"
        raise ValueError(f"--slurm: {given}; say how many minutes a job may run, as in --slurm time=720.")
    if not isinstance(options.get("cpus_per_task", 1), int):
        raise ValueError(f"--slurm: cpus_per_task is {options['cpus_per_task']!r}; it must be a number.")


@contextmanager
def ray_jobs(job: Job, count: int | None) -> Iterator[Running]:
    """Tasks of a Ray cluster: the one at RAY_ADDRESS, or one that is started on this machine.

    Each asks for one processor, and for one GPU where the cluster has any. Every machine of it needs varlora, and the
    output folder and the data under the same paths.

    Args:
        job: what each does.
        count: how many; None: one for each GPU, or processor, of the cluster, and no more than cells.

    Yields:
        As of `local_jobs`.

    Raises:
        ValueError: Ray is not installed, or does not start.
    """
    ray = import_ray()
    try:
        ray.init(log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    except Exception as error:  # Ray raises no narrower one where its processes come up too slowly
        there = os.environ.get("RAY_ADDRESS")
        where = f"Ray cannot be reached at RAY_ADDRESS={there}" if there else "Ray does not start on this machine"
        raise ValueError(
            f"{where}: {error} On a busy machine start it yourself (ray start --head) and set RAY_ADDRESS=auto."
        ) from error
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if count is None:
            count = min(len(job.cells), gpus or int(resources.get("CPU", 1)))
        # Of a machine that dies, Ray gives the task to another, which goes on from the cell's checkpoints.
        remote = ray.remote(num_cpus=1, num_gpus=float(gpus > 0), max_calls=1, max_retries=-1)(_call)
        tasks = [remote.remote(job) for _ in range(count)]
        yield lambda: bool(ray.wait(tasks, num_returns=len(tasks), timeout=0)[1])
    finally:
        ray.shutdown()


def import_submitit() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    return _import("submitit", "slurm")


def import_ray() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    return _import("ray", "ray")


def _import(module: str, executor: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"--executor {executor} needs {module}, which is not installed: pip install 'varlora[{executor}]'. "
            "--executor local and inline need nothing more; inline may be started as often as you like in one folder."
        ) from error


def _call(job: Job) -> None:
    job()
