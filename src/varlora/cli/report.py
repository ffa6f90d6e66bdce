"""`varlora report`: what a comparison, or some runs, have found so far."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from varlora.cli.console import out
from varlora.cli.demo import FORMER
from varlora.cli.finished import check_new_file, write_new_file
from varlora.cli.options.report import PAGE
from varlora.compare import read_plan
from varlora.compare.cells_file import read_cells
from varlora.compare.driver import PLAN
from varlora.compare.gather import gather
from varlora.compare.run_folders import study_of_runs
from varlora.posterior.manifest import ADAPTER_CONFIG, MANIFEST
from varlora.report.study import Study
from varlora.report.study_page import render_study
from varlora.report.study_tables import check_splits
from varlora.report.study_text import print_study, study_latex, study_markdown
from varlora.runs.folder import PREDICTIONS, is_run, versions


def execute(arguments: Namespace) -> None:
    """Reads, and shows or writes."""
    page = arguments.format == "html"
    if page and arguments.split is not None:
        raise ValueError("--split has no effect on the page, which holds all splits and lets you choose; leave it out.")
    if arguments.format == "terminal" and arguments.output_file is not None:
        raise ValueError("--output_file needs a format to write: --format markdown, latex or html.")
    name = str(Path(arguments.folders[0]) / PAGE) if page and _is_comparison(Path(arguments.folders[0])) else None
    target = check_new_file(arguments.output_file or name, overwrite=arguments.overwrite)
    if page and target is None:
        raise ValueError("say where to write the page of these runs, e.g. --output_file report.html.")
    study = _study(arguments)
    check_splits(study, arguments.split)
    if arguments.format == "terminal":
        print_study(study, out, splits=arguments.split)
        return
    if page:
        text = render_study(study, version=versions()["varlora"])
    else:
        text = {"markdown": study_markdown, "latex": study_latex}[arguments.format](study, splits=arguments.split)
    if target is None:
        out.print(text, end="", markup=False, highlight=False, soft_wrap=True)
    else:
        write_new_file(target, text, overwrite=arguments.overwrite)


def _is_comparison(folder: Path) -> bool:
    return (folder / PLAN).is_file()


def _check_predicted(folder: Path) -> None:
    """Refuses a model's folder without stored predictions, and says how it is measured."""
    if is_run(folder):
        if not any((folder / PREDICTIONS).glob("*.parquet")):
            raise ValueError(
                f"{folder} holds no predictions to report: a folder made from another run has none, and a run has "
                f"them in {PREDICTIONS}. Measure it: varlora eval {folder} (--output_file M.json keeps the numbers)."
            )
        return
    checkpoints = sorted(folder.glob(f"checkpoint-*/{ADAPTER_CONFIG}"), key=lambda file: file.stat().st_mtime_ns)
    model = folder if any((folder / name).is_file() for name in (MANIFEST, ADAPTER_CONFIG)) else None
    if model is None and checkpoints:
        model = checkpoints[-1].parent
    if model is not None:
        raise ValueError(
            f"{folder} holds no predictions to report, since `varlora train` has not written it. Measure it: varlora "
            f"eval {model} --test_file FILE (--output_file M.json keeps the numbers)."
        )


def _study(arguments: Namespace) -> Study:
    """What the folders hold: a comparison, or runs of one task."""
    folders = [Path(folder) for folder in arguments.folders]
    plans = [folder for folder in folders if _is_comparison(folder)]
    if not plans:
        if (folders[0] / FORMER).is_file():
            raise ValueError(
                f"{folders[0]} holds the demo of an earlier version of varlora. Its page is {folders[0]}/report.html; "
                f"`varlora report {folders[0]}/runs/*` compares its runs."
            )
        for folder in folders:
            _check_predicted(folder)
        if len(folders) == 1 and not is_run(folders[0]):
            raise ValueError(
                f"{folders[0]} has no {PLAN} and is no run folder. Give the output folder of `varlora compare`, or "
                "folders of finished runs."
            )
        return study_of_runs(folders, reference=arguments.reference)
    if len(folders) > 1:
        raise ValueError(f"{plans[0]} is a comparison of its own; report it alone, or give run folders only.")
    if arguments.reference is not None:
        raise ValueError(f"the reference of {plans[0]} stands in its {PLAN}; --reference is for run folders.")
    return gather(read_plan(plans[0] / PLAN, output_dir=plans[0]), read_cells(plans[0]))
