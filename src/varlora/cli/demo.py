"""`varlora demo`: `varlora compare` on the plan in the package, AdamW and IVON on an embedded task."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

from varlora.cli import compare
from varlora.cli.options.compare import parser

NAME = "varlora-demo"
"""Of the plan."""
PLAN = "plan.yaml"
FORMER = "demo.json"
"""A file in the folder of a demo of versions whose demo was no plan."""


def execute(arguments: Namespace) -> None:
    """Runs it, or what of it is missing in the folder."""
    _prepare_folder(Path(arguments.output_dir), overwrite=arguments.overwrite)
    from varlora.demo.data import plan_file

    words = [str(plan_file()), f"--output_dir={arguments.output_dir}", "--seeds", *map(str, arguments.seeds)]
    compare.execute(parser().parse([*words, *(["--no_progress"] if arguments.no_progress else [])]))


def _prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Deletes the demo that is to be replaced.

    Raises:
        ValueError: the folder holds something else, or the demo of an earlier version and may not be replaced.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    former = (folder / FORMER).is_file()
    if not former and not _is_demo(folder):
        raise ValueError(
            f"{folder} holds files that are not of a demo, so it is neither used nor replaced. Choose another folder "
            "(--output_dir), or delete this one yourself."
        )
    if overwrite:
        shutil.rmtree(folder)
    elif former:
        raise ValueError(
            f"{folder} holds the demo of an earlier version of varlora, which this one cannot go on with. Choose "
            "another folder (--output_dir), or replace this one with --overwrite."
        )


def _is_demo(folder: Path) -> bool:
    from varlora.io.yaml_files import load_yaml

    return (folder / PLAN).is_file() and load_yaml(folder / PLAN).get("name") == NAME
