"""`varlora demo`: AdamW, temperature scaling and IVON on an embedded task."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rich.markup import escape

from varlora.cli.console import out
from varlora.metrics import HEADLINE


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
