"""What a command imports before it has anything to compute: torch takes seconds of CPU, and PEFT twice as many."""

from __future__ import annotations

import os
import subprocess
import sys

from varlora.cli import COMMANDS

SHOWN = """
import contextlib, io, sys
from varlora.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    codes = [main(words.split()) for words in sys.argv[1:]]
print(codes, sorted({"torch", "transformers", "peft", "numpy"} & set(sys.modules)))
"""
READ = """
import sys
import varlora, varlora.cli.health, varlora.cli.prune
varlora.load_posterior, varlora.Prediction, varlora.evaluate
print(sorted({"transformers", "peft", "accelerate", "datasets"} & set(sys.modules)))
"""


def printed(program: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    return done.stdout.strip()


def test_what_only_shows_options_imports_no_torch() -> None:
    shown = ["--help", "--version", "methods", "methods ivon", "tasks", "train --method swag --help"]
    shown += [f"{command} --help" for command in COMMANDS]

    assert printed(SHOWN, *shown) == f"{[0] * len(shown)} []"


def test_what_loads_no_model_imports_neither_transformers_nor_peft() -> None:
    assert printed(READ) == "[]"
