"""Where cells are run: in this process, in processes of their own, or by Ray.

An engine yields one `Outcome` for each cell as it ends; one that fails is an outcome like another.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from varlora.compare.cell import Cell
from varlora.compare.worker import SECONDS_TO_SAVE, execute_cell

Started = Callable[[Cell], None]
ENGINES = ("inline", "workers", "ray")
SECONDS_TO_END = SECONDS_TO_SAVE + 2.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: the cell.
        seconds: wall clock.
        error: what went wrong, in one line; None if nothing did. More is in the cell's error file.
    """

    cell: Cell
    seconds: float
    error: str | None = None


class Engine(Protocol):
    """Runs cells."""

    @property
    def at_once(self) -> int:
        """How many cells it runs at a time."""

    def run(self, cells: Sequence[Cell], started: Started) -> Generator[Outcome, None, None]:
        """Runs cells, and yields each as it ends. When the iteration is left early, what runs is stopped.

        Args:
            cells: in the order in which they are to begin.
            started: is told of each cell that begins.
        """


@dataclass(frozen=True, kw_only=True)
class Inline:
    """One cell after the other, in this process.

    Attributes:
        progress: show each training's own progress bars.
    """

    progress: bool = False
    at_once: int = field(default=1, init=False)

    def run(self, cells: Sequence[Cell], started: Started) -> Generator[Outcome, None, None]:
        """See `Engine.run`."""
        for cell in cells:
            started(cell)
            cell.prepare()
            start, error = time.perf_counter(), None
            try:
                execute_cell(cell, progress=self.progress)
            except Exception as failure:  # noqa: BLE001  of whatever kind, it must not stop the other cells
                error = _one_line(failure)
                _write_error(cell, traceback.format_exc())
            else:
                cell.error_file.unlink(missing_ok=True)
            yield Outcome(cell=cell, seconds=time.perf_counter() - start, error=error)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Each cell in a process of its own, which ends when this one does.

    Processors, and GPUs if there are any, are shared out among those that run at a time.

    Attributes:
        output_dir: the folder with cells.json.
        at_once: processes at a time.
        launcher: what starts a process instead of Python, such as `accelerate launch --num_processes 8`; it must
            take `-m MODULE`, as accelerate and torchrun do.
        inherited: file descriptors that the processes inherit (the lock).
    """

    output_dir: Path
    at_once: int = 1
    launcher: str = ""
    inherited: tuple[int, ...] = ()

    def run(self, cells: Sequence[Cell], started: Started) -> Generator[Outcome, None, None]:
        """See `Engine.run`."""
        command = self.command()
        waiting, running = list(reversed(cells)), list[_Process]()
        free = list(reversed(range(self.at_once)))
        try:
            while waiting or running:
                while waiting and free:
                    cell = waiting.pop()
                    started(cell)
                    cell.prepare()
                    running.append(self._start(command, cell, free.pop()))
                for process in [one for one in running if one.popen.poll() is not None]:
                    running.remove(process)
                    free.append(process.slot)
                    yield process.outcome()
                time.sleep(0.05)
        finally:
            _stop(running)

    def command(self) -> list[str]:
        """What starts a worker, up to its arguments.

        Raises:
            ValueError: the launcher is not to be found.
        """
        words = shlex.split(self.launcher) or [sys.executable]
        beside = Path(sys.executable).parent / words[0]  # the environment need not be activated
        found = shutil.which(words[0]) or (str(beside) if beside.is_file() else None)
        if found is None:
            raise ValueError(
                f"--launcher begins with {words[0]!r}, which is no program here; install it, or give its path."
            )
        return [found, *words[1:], "-m", "varlora.compare.worker"]

    def environment(self, slot: int) -> dict[str, str]:
        """A worker's environment: its share of the processors and of the GPUs.

        Args:
            slot: its number among those at a time.
        """
        shared = dict(os.environ)
        if self.launcher:
            return shared
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        shared.setdefault("OMP_NUM_THREADS", str(max(1, processors // self.at_once)))
        shared.setdefault("TOKENIZERS_PARALLELISM", "false")
        if devices := _devices():
            shared["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        return shared

    def _start(self, command: Sequence[str], cell: Cell, slot: int) -> _Process:
        log = cell.folder.with_name(f"{cell.folder.name}.output.txt")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output:
            popen = subprocess.Popen(
                [*command, str(self.output_dir), str(cell.folder)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(slot),
                pass_fds=self.inherited,
                start_new_session=True,  # Ctrl-C is this process's to handle
            )
        return _Process(cell=cell, popen=popen, log=log, slot=slot, start=time.perf_counter())


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Each cell as a task of a Ray cluster: the one at RAY_ADDRESS, or one that is started on this machine.

    Every machine of it needs varlora, and the output folder and the data under the same paths.

    Attributes:
        limit: tasks at a time; None leaves it to Ray.
        processors: of each task.
        gpus: of each task; None: one where the cluster has any.
    """

    limit: int | None = None
    processors: float = 1
    gpus: float | None = None

    @property
    def at_once(self) -> int:
        """How many tasks are in Ray's hands at a time."""
        return self.limit if self.limit is not None else 10_000

    def run(self, cells: Sequence[Cell], started: Started) -> Generator[Outcome, None, None]:
        """See `Engine.run`."""
        ray = import_ray()
        ray.init(log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
        try:
            gpus = self.gpus if self.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
            options = {"num_cpus": self.processors, "num_gpus": gpus, "max_calls": 1, "max_retries": 0}
            remote = ray.remote(**options)(_ray_task)
            waiting, running = list(reversed(cells)), dict[Any, Cell]()
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    cell = waiting.pop()
                    started(cell)
                    cell.prepare()
                    running[remote.remote(cell.to_dict(), os.getcwd(), max(1, int(self.processors)))] = cell
                for done in ray.wait(list(running), num_returns=1)[0]:
                    cell = running.pop(done)
                    seconds, error = _ray_result(ray, done, cell)
                    yield Outcome(cell=cell, seconds=seconds, error=error)
        finally:
            ray.shutdown()


def import_ray() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            "--engine ray needs Ray, which is not installed: pip install 'varlora[ray]'. On one machine, --engine "
            "workers needs nothing more."
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Process:
    cell: Cell
    popen: subprocess.Popen[bytes]
    log: Path
    slot: int
    start: float

    def outcome(self) -> Outcome:
        """How it ended; its output becomes the cell's error file if it failed."""
        _close(self.popen.stdin)
        seconds, code = time.perf_counter() - self.start, self.popen.returncode
        if code == 0:
            self.log.unlink(missing_ok=True)
            self.cell.error_file.unlink(missing_ok=True)
            return Outcome(cell=self.cell, seconds=seconds)
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        with open(self.log, "a", encoding="utf-8") as output:
            output.write(f"\n(the worker ended: {how})\n")
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        os.replace(self.log, self.cell.error_file)
        return Outcome(cell=self.cell, seconds=seconds, error=lines[-2] if len(lines) > 1 and code > 0 else how)


def _stop(running: Sequence[_Process]) -> None:
    """Closes the inputs, on which workers end; then ends them and what they have started by force."""
    for process in running:
        _close(process.popen.stdin)
    deadline = time.monotonic() + SECONDS_TO_END
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(timeout=max(0.0, deadline - time.monotonic()))
        if process.popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGKILL)
            process.popen.wait()
        process.log.unlink(missing_ok=True)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def _devices() -> list[str]:
    """The GPUs to share out, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _ray_task(values: dict[str, Any], directory: str, threads: int) -> tuple[float, str | None, str]:
    """Runs on a machine of the cluster: seconds, and what went wrong in one line and in full."""
    os.chdir(directory)
    if not torch.cuda.is_available():
        torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        execute_cell(Cell.from_dict(values))
    except Exception as failure:  # noqa: BLE001  of whatever kind, it must not stop the other cells
        return time.perf_counter() - start, _one_line(failure), traceback.format_exc()
    return time.perf_counter() - start, None, ""


def _ray_result(ray: Any, task: Any, cell: Cell) -> tuple[float, str | None]:
    try:
        seconds, error, text = ray.get(task)
    except ray.exceptions.RayError as failure:  # the process or the machine died
        seconds, error, text = 0.0, _one_line(failure), str(failure)
    if error is None:
        cell.error_file.unlink(missing_ok=True)
    else:
        _write_error(cell, text)
    return seconds, error


def _write_error(cell: Cell, text: str) -> None:
    cell.error_file.parent.mkdir(parents=True, exist_ok=True)
    cell.error_file.write_text(text, encoding="utf-8")


def _one_line(failure: BaseException) -> str:
    first = (str(failure).strip().splitlines() or ["no message"])[0]
    return f"{type(failure).__name__}: {first}"
