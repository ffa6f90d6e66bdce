"""What a user sees: tables on stdout; progress, notes, warnings and errors on stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table
from rich.text import Text
from tqdm import tqdm

from varlora.io.user_warnings import log_user_warnings
from varlora.io.visible import visible

out = Console()
err = Console(stderr=True)


def say(text: str) -> None:
    """Prints text in rich's markup, with paths and commands in it unbroken."""
    out.print(text, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """One message on stderr."""
    err.print(Text.assemble(("error: ", "bold red"), visible(message)), soft_wrap=True)


@contextmanager
def on_stderr() -> Iterator[None]:
    """Within the block everything is shown on stderr: stdout is for what another program reads."""
    before, out.stderr = out.stderr, True
    try:
        yield
    finally:
        out.stderr = before


def grid() -> Table:
    """A table without lines, for names and what they mean."""
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def numbers_table(names: str | Column, *numbers: str | Column, gap: int = 2) -> Table:
    """A table with names in the first column and numbers in the others, unless one is given as a column."""
    first = Column(names, no_wrap=True) if isinstance(names, str) else names
    others = [
        Column(heading, justify="right", no_wrap=True) if isinstance(heading, str) else heading for heading in numbers
    ]
    return Table(first, *others, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0))


def set_up(*, debug: bool) -> None:
    """Shows our notes and warnings, and none of the libraries' chatter; `debug` shows everything."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    handler = RichHandler(console=err, show_time=False, show_level=False) if debug else _Handler()
    handler.setFormatter(_Formatter("%(message)s"))
    root = logging.getLogger()
    for before in [handler for handler in root.handlers if isinstance(handler, (RichHandler, _Handler))]:
        root.removeHandler(before)
    root.addHandler(handler)
    logging.getLogger("varlora").setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        log_user_warnings()


class _Handler(logging.Handler):
    """Notes on stderr, above a bar that is there; a file or a pipe gets each on one line, with paths unbroken."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            err.print(self.format(record), markup=False, emoji=False, soft_wrap=not err.is_terminal)


class _Formatter(logging.Formatter):
    """The message, with its level where that is not the usual one."""

    def format(self, record: logging.LogRecord) -> str:
        text = visible(super().format(record))
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"
