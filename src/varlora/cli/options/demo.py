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
            "Train a small Llama, which is in the package, on a generated task of multiple choice with AdamW, AdamW "
            "with temperature scaling, and IVON. Prints what came out, and writes the posterior and a report in HTML."
        ),
        examples=EXAMPLES,
    )
    made.option("output_dir", "Folder for the results.", default="demo", metavar="FOLDER")
    made.option("seeds", "Seeds to train with.", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    made.flag("overwrite", "Replace that folder.")
    made.flag("no_progress", "Show no progress bars.")
    return made
