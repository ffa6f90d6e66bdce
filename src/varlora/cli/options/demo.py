"""What `varlora demo` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora demo
  varlora demo --seeds 0 --output_dir quick          a third of the time
"""


def parser() -> CommandParser:
    """Where to write, and how many seeds."""
    made = CommandParser(
        "demo",
        about=(
            "Train a small Llama, which is in the package, on a generated task of multiple choice with AdamW and IVON, "
            "and compare five ways to predict with them: `varlora compare` on a plan in the package. The same command "
            "goes on where it was interrupted. Prints the tables, and writes them and a page with figures."
        ),
        examples=EXAMPLES,
    )
    made.option("output_dir", "Folder for the results.", default="demo", metavar="FOLDER")
    made.option("seeds", "Seeds to train with.", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    made.flag("overwrite", "Delete that folder first, and begin anew.")
    made.flag("no_progress", "Show no progress bars.")
    return made
