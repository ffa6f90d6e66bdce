"""What `varlora report` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser

FORMATS = ("terminal", "markdown", "latex", "html")
PAGE = "report.html"
EXAMPLES = """
  varlora report runs/llama-3.2-3b
  varlora report runs/llama-3.2-3b --format html --overwrite
  varlora report runs/llama-3.2-3b --format latex --split test --output_file tables.tex
  varlora report runs/adamw runs/ivon --reference "adamw, mean"
"""


def parser() -> CommandParser:
    """What to report, how, and where to write it."""
    command = CommandParser(
        "report",
        about=(
            "Show what `varlora compare` has found so far, from its output folder, or compare finished runs of one "
            "task as they are: metrics with intervals, paired differences, calibration, costs, and what is missing."
        ),
        examples=EXAMPLES,
        usage="FOLDER [FOLDER ...] [OPTIONS]",
    )
    command.add_argument(
        "folders", metavar="FOLDER", nargs="+", help="Output folder of `varlora compare`, or folders of finished runs."
    )
    command.option(
        "format",
        "'html' is one page with figures that needs no network; the others are its tables.",
        choices=FORMATS,
        default="terminal",
    )
    command.option("output_file", f"File to write; standard output otherwise, and FOLDER/{PAGE} for html.")
    command.flag("overwrite", "Replace the output file.")
    command.option("split", "Which splits; all of them otherwise. The page always has all.", nargs="+", metavar="NAME")
    command.option("reference", "For run folders: the row that the others are compared with.", metavar="ROW")
    return command
