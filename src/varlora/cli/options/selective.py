"""Options that `eval` and `predict` share: which rows to answer, and sets of answers."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from fractions import Fraction
from functools import partial

from varlora.cli.parsing import CommandParser

SURENESS = ("confidence", "entropy", "mutual_information")
SET_SCORES = ("lac", "aps")


def add_selective(command: CommandParser) -> None:
    """The options, in a group of their own."""
    option = partial(command.option, title="Selective prediction (thresholds from validation rows)")
    option("coverage", "Answer this share of the rows, the surest, e.g. 0.9.", type=_share("coverage"), metavar="X")
    option(
        "target_accuracy",
        "Answer as many rows as can be answered with this accuracy, guaranteed, e.g. 0.95.",
        type=_share("target_accuracy"),
        metavar="X",
    )
    option("delta", "Chance that the guarantee of --target_accuracy may fail; 0.05 otherwise.", type=float)
    option("sureness", "How sure an answer is; confidence otherwise.", choices=SURENESS)
    option(
        "prediction_sets",
        "Give sets of answers that hold the right one with this probability, e.g. 0.9.",
        type=_share("prediction_sets"),
        metavar="X",
    )
    option("set_score", "How the sets are made; lac, which gives small ones, otherwise.", choices=SET_SCORES)
    option("calibration_file", "File of labelled rows to choose on, in place of the run's validation rows.")


def _share(name: str) -> Callable[[str], Fraction]:
    def share(text: str) -> Fraction:
        from varlora.metrics.conformal import as_wanted  # --help need not wait for torch

        try:
            return as_wanted(text, name=name)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error

    return share
