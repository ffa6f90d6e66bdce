"""`varlora demo`: AdamW, temperature scaling and IVON on an embedded task."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rich.markup import escape

from varlora.cli.console import out
from varlora.cli.parsing import CommandParser
from varlora.report.vocabulary import HEADLINE

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


def execute(arguments: Namespace) -> None:
    """Runs it."""
    from varlora.demo.compare import REPORT, run_demo  # --help need not wait for matplotlib
    from varlora.report import reading, results_table

    comparison = run_demo(
        output_dir=Path(arguments.output_dir),
        seeds=arguments.seeds,
        overwrite=arguments.overwrite,
        progress=not arguments.no_progress,
    )
    out.print(results_table(comparison, metrics=HEADLINE).to_rich())
    out.print(reading(comparison), highlight=False)
    out.print(f"The report is [bold]{escape(str(Path(arguments.output_dir) / REPORT))}[/bold]; open it in a browser.")
