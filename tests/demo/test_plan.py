"""The plan of `varlora demo`: it fits its methods, and its table is the one in the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

from varlora.compare import read_plan
from varlora.demo.data import model_folder, plan_file
from varlora.demo.world import fine_tuning_task
from varlora.runs.base_model import locate_model
from varlora.tasks import TASKS, count_overlap

DOCS = Path(__file__).parents[2] / "docs" / "results" / "demo.md"


def test_the_rows_are_those_of_the_documentation() -> None:
    labels = re.findall(r"^\| (\w.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    plan = read_plan(plan_file())
    assert (list(plan.labels), plan.reference, plan.seeds) == (labels, "AdamW", (0, 1, 2))


def test_its_cells_train_the_shipped_model_on_the_shipped_task(tmp_path: Path) -> None:
    plan = read_plan(plan_file(), output_dir=tmp_path, seeds=[3])
    cells = plan.cells()
    assert [(cell.method, cell.seed) for cell in cells] == [("adamw", 3), ("ivon", 3)]
    for cell in cells:
        assert locate_model(cell.config.model_name_or_path).local == model_folder()
        assert (cell.config.method_options["learning_rate"], cell.config.max_steps) == (5e-4, 700)
        assert cell.generated is not None
        cell.generated.write(tmp_path / "generated")
        for split, rows in fine_tuning_task(0).items():
            file = Path(getattr(cell.config, f"{split}_file"))
            assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == rows


def test_the_real_demos_rows_are_those_of_its_note() -> None:
    plan = read_plan(plan_file("smollm2"), data=plan_file("smollm2").parent)
    ((name, settings),) = plan.tasks.items()
    task = TASKS[settings["task"]](plan_file("smollm2").parent / settings["folder"])
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 280,
        "validation": 140,
        "test": 420,
        "ood": 200,
    }
    assert (name, len(task.answers), task.licence) == ("banking", 14, "CC BY 3.0")
    assert len({answer.split("_")[0] for answer in task.answers}) == 14  # known by their first tokens
    assert not any(max(counts.values()) for counts in count_overlap(task).values())
    for text in ("280 requests", "14 kinds", "420 others", "200 requests"):
        assert text in " ".join(plan.note.split())
    assert "CC BY 3.0" in (plan_file("smollm2").parent / "banking" / "README.md").read_text(encoding="utf-8")


def test_what_is_chosen_is_chosen_on_validation_rows() -> None:
    rows = {label: row for method in read_plan(plan_file()).methods.values() for label, row in method.rows.items()}
    assert rows["AdamW + temperature"].chosen == {"logit_temperature"}
    assert rows["IVON, 10 samples, pruned"].chosen == {"prune"}
    assert not any(rows[label].chosen for label in ("AdamW", "IVON, mean", "IVON, 10 samples"))
