"""`varlora lm-eval`: a posterior as a model of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SUBCOMMANDS = ("run", "ls", "validate")


def execute(arguments: Namespace) -> None:
    """Registers the model and calls the harness."""
    command, words = _for_the_harness(arguments.words)
    try:
        from varlora.integrations.lm_eval import register
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    from lm_eval.__main__ import cli_evaluate

    register()
    with _command_line(["lm-eval", command, *words]):
        cli_evaluate()


def _for_the_harness(words: Sequence[str]) -> tuple[str, list[str]]:
    """The harness's command and its words, with our model's name in `run`."""
    command, rest = (words[0], list(words[1:])) if words[0] in SUBCOMMANDS else ("run", list(words))
    if command != "run" or rest[:1] in (["-h"], ["--help"]):
        return command, rest
    for i, word in enumerate(rest):
        name, _, value = word.partition("=")
        other = value or "".join(rest[i + 1 : i + 2])
        if name in ("--model", "-M") and other != "varlora":
            raise ValueError(
                f"--model is {other!r}; varlora lm-eval has one, varlora. For another, call lm-eval itself."
            )
    return command, ["--model", "varlora", *rest]


@contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """The harness reads, and changes, `sys.argv`."""
    before = sys.argv
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = before
