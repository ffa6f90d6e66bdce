"""`varlora demo`: `varlora compare` on a plan in the package, AdamW and IVON on an embedded task or on a real one."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from varlora.cli import compare
from varlora.cli.console import out, say
from varlora.cli.options.compare import parser
from varlora.compare import Plan, Variant, read_plan
from varlora.compare.driver import PLAN
from varlora.compare.local_jobs import processors
from varlora.compare.variant_files import load_variant
from varlora.demo import data
from varlora.io.yaml_files import load_yaml
from varlora.prediction.prediction import Prediction
from varlora.runs.base_model import pretrained_name
from varlora.runs.data import load_new_rows
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.predict import predict_split
from varlora.runs.setting import reload_setting
from varlora.tasks.rows import Records

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
    file, real = data.plan_file(arguments.model), arguments.model != "embedded"
    folder = Path(arguments.output_dir or (f"demo-{arguments.model}" if real else "demo"))
    if real:
        _locate_model(file)  # before a demo that is there is deleted
    _prepare_folder(folder, file, overwrite=arguments.overwrite)
    words = [str(file), f"--output_dir={folder}"]
    words += [f"--data={file.parent}"] if real else []
    words += ["--seeds", *map(str, arguments.seeds)] if arguments.seeds else []
    workers = arguments.workers if arguments.workers is not None else min(2, processors())
    words += ["--executor=local", f"--workers={workers}"] if workers != 1 else []
    words += ["--no_progress"] if arguments.no_progress else []
    options = parser().parse(words)
    compare.execute(options)
    if real:
        _show_confidences(read_plan(options.plan, output_dir=folder, data=options.data, seeds=options.seeds))


def _locate_model(file: Path) -> None:
    """Finds a plan's model, and unpacks it where that has not been done; refuses one that is not installed."""
    plan = load_yaml(file)
    (model,) = plan["models"].values()
    pretrained_name(model["model_name_or_path"], dtype=plan["settings"].get("dtype", "auto"))


def _show_confidences(plan: Plan) -> None:
    """How sure each method's first training is of some texts, of the test rows, and of rows that belong to no class."""
    (model,), (task,), seed = plan.models, plan.tasks, plan.seeds[0]
    answers: dict[str, list[str]] = {}
    for name, method in plan.methods.items():
        label, variant = [(label, row) for label, row in method.rows.items() if not row.chosen][-1]
        cell = plan.cell(model, task, name, seed)
        if cell.state() == "done":
            answers[label] = list(_confidences(read_run(cell.folder), variant))
    if not answers:
        return
    table = Table("Asked", *answers, title=f"How sure each is (seed {seed})", title_justify="left")
    texts = [*TEXTS[:-1], f"{TEXTS[-1]} (belongs to no class)"]
    headings = [*texts, "test requests, on average", "requests of no class, on average"]
    for heading, *values in zip(headings, *answers.values(), strict=True):
        table.add_row(escape(heading), *map(escape, values))
    out.print(table)
    averages = ", ".join(f"{label} is {values[-1]} sure of it" for label, values in answers.items())
    say(
        f"A request that belongs to no class gets one of the classes all the same: on average {averages}. How well its "
        "confidence tells such requests from others is in the table of out-of-scope rows above."
    )


def _confidences(run: RunFolder, variant: Variant) -> Iterator[str]:
    """What is answered to each of `TEXTS`, and how sure it is; then the averages over the splits test and ood."""
    split = "input"
    records = Records(where="the demo's texts", rows=tuple({"text": text} for text in TEXTS), labelled=False)
    task = load_new_rows(records, run, split=split, labelled=False)
    prediction = predict_split(reload_setting(run, task), run.posterior, split, variant.config)
    assert isinstance(prediction, Prediction)
    confidence, answers = prediction.probs.max(dim=1)
    for probability, answer in zip(confidence.tolist(), answers.tolist(), strict=True):
        yield f"{prediction.classes[answer]}, {probability:.0%}"
    for own_split in ("test", "ood"):
        yield f"{float(load_variant(run, variant, own_split).probs.max(dim=1).values.mean()):.0%}"


def _prepare_folder(folder: Path, file: Path, *, overwrite: bool) -> None:
    """Deletes the demo that is to be replaced; refuses a folder of something else, or of an earlier version."""
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
    there = folder / PLAN
    return there.is_file() and load_yaml(there).get("name") == load_yaml(file)["name"]
