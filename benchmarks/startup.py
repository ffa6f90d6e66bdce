"""How much CPU a command takes before it has anything to compute.

Seconds of user and system time of a process of its own, median and quartiles; the commands take turns, so that a busy
machine slows each alike. Two floors: Python that does nothing, and Python that imports torch.

    python -m benchmarks.startup                      # a table in Markdown
    python -m benchmarks.startup --run runs/ivon      # `varlora health` of a run, too
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence

VARLORA = ("-m", "varlora")
FLOORS = {"python -c pass": ("-c", "pass"), "import torch": ("-c", "import torch")}
COMMANDS = ("--help", "train --help", "predict --help", "compare --help", "methods", "tasks")


def cpu_seconds(words: Sequence[str]) -> float:
    """User and system time of Python with these words."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"python {' '.join(words)} left with code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run folder, for `varlora health`")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    given = parser.parse_args(arguments)
    commands = [*COMMANDS, *([f"health {given.run}"] if given.run else [])]
    words = {**FLOORS, **{f"varlora {command}": (*VARLORA, *command.split()) for command in commands}}
    seconds: dict[str, list[float]] = {name: [] for name in words}
    for of_one in words.values():
        cpu_seconds(of_one)  # compiles what is not compiled yet
    for _ in range(given.repeats):
        for name, of_one in words.items():
            seconds[name].append(cpu_seconds(of_one))
    quartiles = {name: statistics.quantiles(found, n=4, method="inclusive") for name, found in seconds.items()}
    versions = {name: importlib.metadata.version(name) for name in ("varlora", "torch", "transformers", "peft")}
    about = {
        "repeats": given.repeats,
        "python": platform.python_version(),
        **versions,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    if given.json:
        print(json.dumps({"cpu_seconds": quartiles, "about": about}, indent=2))
        return
    print("| command | CPU, s | quartiles |")
    print("| --- | --- | --- |")
    for name, (low, median, high) in quartiles.items():
        print(f"| `{name}` | {median:.2f} | {low:.2f}–{high:.2f} |")
    print()
    print(", ".join(f"{name} {value}" for name, value in about.items()))


if __name__ == "__main__":
    main()
