"""`varlora completion`: a shell's script, made from the parsers of all commands by shtab."""

from __future__ import annotations

import importlib.util
from argparse import ArgumentParser, Namespace
from typing import Any

from varlora.cli import COMMANDS, parser_of
from varlora.cli.console import out
from varlora.cli.parsing import CommandParser
from varlora.methods import METHODS
from varlora.tasks import TASKS

FOLDERS = ("FOLDER", "RUN", "SOURCE")
FILES = ("FILE", "PLAN")


def execute(arguments: Namespace) -> None:
    """Prints it."""
    if importlib.util.find_spec("shtab") is None:
        raise ValueError("completion needs shtab: pip install 'varlora[completion]'.")
    import shtab

    script = shtab.complete(every_command(), shell=arguments.shell)
    out.print(script, markup=False, highlight=False, soft_wrap=True)


def every_command() -> ArgumentParser:
    """One parser that knows the commands with all their options."""
    whole = ArgumentParser(prog="varlora")
    whole.add_argument("--version", action="version", version="", help="the version")
    make: Any = _completed  # which gives a parser, as a class would
    commands = whole.add_subparsers(parser_class=make)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary.replace("%", "%%"))
    return whole


def _completed(*, prog: str) -> CommandParser:
    """The parser of `varlora COMMAND`, whose files, folders and names are known to be such."""
    import shtab

    command = prog.split()[-1]
    parser = parser_of(command)
    parser.add_every_option()
    parser.finish_help()
    named = {"method": METHODS, "task": TASKS, "name": {"methods": METHODS, "tasks": TASKS}.get(command)}
    for action in parser._actions:
        names: Any = named.get(action.dest)
        if names is not None:
            action.choices = list(names)
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return parser
