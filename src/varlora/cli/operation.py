"""What `prune`, `temper` and `merge` share: posteriors read from any of our folders, and a new folder written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from varlora.cli.console import say
from varlora.io.folders import atomic_folder, check_target
from varlora.posterior import Posterior
from varlora.posterior.folder import MANIFEST
from varlora.runs.folder import is_run, write_derived


def check_output(output_dir: str, sources: Sequence[str], *, overwrite: bool, marker: str = MANIFEST) -> None:
    """Whether the result may go there.

    Args:
        output_dir: the folder.
        sources: what is read.
        overwrite: replace a folder that holds the marker.
        marker: a file that such results have.

    Raises:
        ValueError: something is there already, or it is one of the sources.
    """
    if any(Path(output_dir).resolve() == Path(source).resolve() for source in sources):
        raise ValueError(f"--output_dir is {output_dir}, which is read from; give another folder.")
    check_target(output_dir, overwrite=overwrite, marker=marker)


def write(q: Posterior, sources: Sequence[str], output_dir: str, *, overwrite: bool, changed: str) -> None:
    """Writes the new folder, and says what changed and what can be done with it."""
    with atomic_folder(output_dir, overwrite=overwrite) as folder:
        write_derived(folder, q, sources=[Path(source) for source in sources], name=Path(output_dir).name)
    say(f"{changed} Written to [bold]{escape(output_dir)}[/bold].")
    if is_run(sources[0]):
        own = "its settings and data" if len(sources) == 1 else f"the settings and data of {escape(sources[0])}"
        say(f"Next, with {own}: [cyan]varlora eval {escape(output_dir)}[/cyan]")
