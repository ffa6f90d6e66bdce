"""A cell done by several processes that a launcher starts, `LAUNCHER -m varlora.compare.launched FOLDER CELL`.

The processes watch their standard input. When their parent writes to it, a training ends after its step, with a
checkpoint; when it is closed, which the system does when the parent dies in whatever way, they end at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from varlora.compare.cell import Cell
from varlora.compare.cells_file import read_cells
from varlora.compare.worker import execute_cell, log_to_stderr, warnings_in
from varlora.training.stopping import Stopped, ask_to_stop

logger = logging.getLogger(__name__)

ORPHANED = 129
SECONDS_TO_SAVE = 10.0
"""That a training has to end after its step, before its processes end all the same."""
ASKED = b"stop" * 1024
"""Each of the processes that share the input reads one byte of it."""


def launch_cell(cell: Cell, output_dir: Path, launcher: str) -> None:
    """Does a cell in processes of their own, which end when this one does.

    Args:
        cell: what to do; its `prepare` has been called.
        output_dir: the folder with cells.json.
        launcher: what starts them instead of Python, such as `accelerate launch --num_processes 8`; it must take
            `-m MODULE`, as accelerate and torchrun do.

    Raises:
        ValueError: the launcher is not to be found.
        RuntimeError: they ended badly; the message holds their output.
    """
    log = cell.folder.with_name(f"{cell.folder.name}.output.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*launcher_command(launcher), str(output_dir), str(cell.folder)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is this process's to handle
            )
        try:
            code = process.wait()
        finally:
            _end(process)
        if code != 0:
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            raise RuntimeError(f"{how}: {text.rpartition(chr(10))[2]}\n{text}")
        for warning in warnings_in(log):  # which every process gives
            logger.warning("%s", warning)
    finally:
        log.unlink(missing_ok=True)


def launcher_command(launcher: str) -> list[str]:
    """What starts the processes, up to this module's arguments.

    Raises:
        ValueError: the launcher is not to be found.
    """
    words = shlex.split(launcher)
    beside = Path(sys.executable).parent / words[0]  # the environment need not be activated
    program = shutil.which(words[0]) or (str(beside) if beside.is_file() else None)
    if program is None:
        raise ValueError(
            f"--launcher begins with {words[0]!r}, which is no program here; install it, or give its path."
        )
    return [program, *words[1:], "-m", "varlora.compare.launched"]


def main(arguments: list[str]) -> None:
    """Does one of the cells that cells.json lists, while standard input is open.

    Args:
        arguments: the output folder, and the cell's folder.
    """
    folder, wanted = map(Path, arguments)
    threading.Thread(target=_watch_input, daemon=True).start()
    log_to_stderr()
    try:
        execute_cell(next(cell for cell in read_cells(folder) if cell.folder == wanted))
    except Stopped as stop:
        logging.error("%s", stop)
        sys.exit(stop.exit_code)


def _watch_input() -> None:
    if os.read(sys.stdin.fileno(), 1) and ask_to_stop():
        time.sleep(SECONDS_TO_SAVE)
    os._exit(ORPHANED)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks processes that still run to stop, then ends them and what they have started by force."""
    assert process.stdin is not None
    if process.poll() is None:
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            process.stdin.write(ASKED)
            process.stdin.flush()
            process.wait(timeout=SECONDS_TO_SAVE + 2)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


if __name__ == "__main__":
    main(sys.argv[1:])
