"""The command line, `varlora COMMAND`.

A command is two modules of one name: in `varlora.cli.options`, `parser()` makes its parser and needs no torch; here,
`execute(arguments)` does the work, and is imported when the command line has been read.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from varlora.cli.console import grid, out, print_error, say, set_up
from varlora.io.nearest import nearest
from varlora.training.stopping import Stopped, sigterm_raises

if TYPE_CHECKING:
    from varlora.cli.parsing import CommandParser

COMMANDS: Mapping[str, str] = {
    "demo": "train with AdamW and IVON on an embedded task, and compare; a few minutes on a laptop",
    "train": "fine-tune a model with LoRA and keep the posterior",
    "compare": "run models × methods × tasks × seeds from one file, and report",
    "eval": "measure a run, with intervals, on its own splits or on another file",
    "predict": "answer rows that have no labels, with the model's uncertainty",
    "serve": "answer over HTTP: classes, chats and completions with their uncertainty, and a page",
    "lm-eval": "measure a run on the tasks of EleutherAI's lm-evaluation-harness",
    "health": "whether sampling helps in a run, and how its posterior does; loads no model",
    "tune": "choose how to predict with a run, on its validation rows",
    "decide": "choose which rows a run answers, with a guarantee, and keep it",
    "report": "show what a comparison, or some runs, have found: tables, or one interactive page",
    "prune": "set a posterior's least certain entries to zero",
    "temper": "scale a posterior's variance",
    "merge": "combine posteriors that were trained on different data",
    "distill": "train one plain adapter that answers in one pass like the average over a run's draws",
    "export": "write a posterior as plain adapters, for vLLM, SGLang and PEFT",
    "methods": "list the ways to train",
    "tasks": "list the named tasks",
    "completion": "print what makes bash, zsh or fish complete commands and options",
}
MODULES: Mapping[str, str] = {"eval": "evaluate", "lm-eval": "lm_eval"}
"""Where a command's module is not called as the command."""

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the command and its options; those of the process by default.

    Returns:
        The exit code: 0 done, 1 a mistake in the input, 2 a mistake in the command line, 130 interrupted by Ctrl-C,
        143 by SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        _print_overview()
        return DONE if words else MISUSED
    if words[0] == "--version":
        say(f"varlora {importlib.metadata.version('varlora')}")
        return DONE
    name, *options = words
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        print_error(f"unknown {what} {name!r}; {nearest(name, COMMANDS)} `varlora --help` lists the commands.")
        return MISUSED
    return _run(name, options)


def parser_of(command: str) -> CommandParser:
    """A command's parser, made anew."""
    parser: CommandParser = importlib.import_module(f"varlora.cli.options.{_module_of(command)}").parser()
    return parser


def _module_of(command: str) -> str:
    return MODULES.get(command, command)


def _run(name: str, options: list[str]) -> int:
    debug = "--debug" in options
    try:
        set_up(debug=debug)
        arguments = parser_of(name).parse(options)
        with sigterm_raises():
            importlib.import_module(f"varlora.cli.{_module_of(name)}").execute(arguments)
    except SystemExit as stop:  # argparse's --help and errors
        return stop.code if isinstance(stop.code, int) else MISUSED
    except KeyboardInterrupt as stop:
        print_error(str(stop) or "interrupted.")
        return stop.exit_code if isinstance(stop, Stopped) else INTERRUPTED
    except (ValueError, OSError) as error:
        if debug:
            raise
        print_error(str(error))
        return FAILED
    return DONE


def _print_overview() -> None:
    out.print("[bold]varlora[/bold]: LoRA fine-tuning that keeps a posterior over the adapter's weights.\n")
    say("Usage: [cyan]varlora COMMAND [OPTIONS][/cyan]\n")
    table = grid()
    for name, summary in COMMANDS.items():
        table.add_row(f"[cyan]{name}[/cyan]", summary)
    out.print(table)
    say(
        "\n[cyan]varlora COMMAND --help[/cyan] shows a command's options and examples. --debug shows the traceback "
        "of an error; --version the version."
    )
