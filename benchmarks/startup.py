"""How much CPU a command takes before it has anything to compute.

Seconds of user and system time of a process of its own, median and quartiles; the commands take turns, so that a busy
machine slows each alike. Two floors: Python that does nothing, and Python that imports torch.

    python -m benchmarks.startup                      # a table in Markdown
    python -m benchmarks.startup --run runs/ivon      # `varlora health` of a run, too
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Sequence

from benchmarks.measuring import parser_of, quartiles, show, take_turns

VARLORA = ("-m", "varlora")
FLOORS = {"python -c pass": ("-c", "pass"), "import torch": ("-c", "import torch")}
COMMANDS = ("--help", "train --help", "predict --help", "compare --help", "methods", "tasks")


def command(words: Sequence[str]) -> Callable[[], object]:
    """Python with these words, run to its end."""
    return lambda: subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)


def seconds_of_children(way: Callable[[], object]) -> float:
    """User and system time of the processes that a way starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    way()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("--run", help="a run folder, for `varlora health`")
    given = parser.parse_args(arguments)
    commands = [*COMMANDS, *([f"health {given.run}"] if given.run else [])]
    words = {**FLOORS, **{f"varlora {command}": (*VARLORA, *command.split()) for command in commands}}
    ways = {name: command(of_one) for name, of_one in words.items()}
    seconds = take_turns(ways, given.rounds, seconds_of_children)
    show({"CPU": [{"command": f"`{name}`", "s": quartiles(of_one)} for name, of_one in seconds.items()]}, given)


if __name__ == "__main__":
    main()
