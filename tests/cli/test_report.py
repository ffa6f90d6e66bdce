"""`varlora report`, on runs that were trained one by one and on a comparison that is not finished."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.workshop import Outcome, Workshop
from varlora.cli import main
from varlora.compare import read_plan
from varlora.compare.cells_file import write_cells
from varlora.compare.worker import execute_cell
from varlora.runs.folder import read_run

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def adamw(workshop: Workshop) -> Path:
    folder = workshop.folder / "adamw"
    assert main(workshop.training(folder, method="adamw")) == 0
    return folder


@pytest.fixture(scope="module")
def comparison(workshop: Workshop) -> Path:
    """AdamW and IVON with two seeds, of which IVON's second is missing."""
    folder = workshop.folder / "comparison"
    folder.mkdir()
    short = {"max_steps": 2, "lora_r": 2, "samples": 2, "save_steps": 100, "learning_rate": 1e-3}
    content: dict[str, Any] = {
        "name": "small_plan",
        "output_dir": str(folder),
        "reference": "AdamW",
        "seeds": [0, 1],
        "settings": short,
        "models": {"tiny": {"model_name_or_path": str(workshop.model)}},
        "tasks": {"reviews": {f"{s}_file": str(workshop.folder / f"{s}.jsonl") for s in ("train", "test")}},
        "methods": {
            "adamw": {"settings": {"method": "adamw"}, "rows": {"AdamW": {"mode": "mean"}}},
            "ivon": {
                "settings": {"method": "ivon"},
                "rows": {"IVON, mean": {"mode": "mean"}, "IVON, 2 samples": {"mode": "samples"}},
                "curves": [{"over": "temperature", "values": [0, 1]}],
            },
        },
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    cells = read_plan(folder / "plan.yaml").cells()
    write_cells(cells, folder)
    for cell in cells:
        if (cell.method, cell.seed) != ("ivon", 1):
            cell.prepare()
            execute_cell(cell)
    return folder


def embedded(file: Path) -> Any:
    found = re.search(r'id="study">(.*?)</script>', file.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def numbers(rows: list[dict[str, Any]], metric: str) -> dict[str, float]:
    """The first exact number of each row."""
    return {
        row["name"]: next(cell["lines"][0][0]["value"] for cell in row["cells"] if cell["metric"] == metric)
        for row in rows
    }


def test_the_page_of_runs_has_the_numbers_of_their_metrics(
    call: Call, adamw: Path, run_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "page.html"
    done = call("report", adamw, run_folder, "--format", "html", "--output_file", target)
    assert (done.code, "page.html" in done.out) == (0, True), done.err
    (block,) = embedded(target)["blocks"]
    shown = block["splits"]["test"]["results"]["rows"]
    for metric in ("accuracy", "nll", "ece_15", "brier"):
        expected = {
            f"{run.config.method}, {mode}": values[metric]
            for run in map(read_run, (adamw, run_folder))
            for mode, values in run.metrics["test"].items()
        }
        assert numbers(shown, metric) == pytest.approx(expected, rel=1e-12)
    assert sorted(expected) == ["adamw, mean", "ivon, mean", "ivon, samples"]
    assert embedded(target)["reference"] == "adamw, mean"
    assert block["examples"][0]["prompt"].startswith("a ")


def test_the_terminal_and_markdown_show_the_same_tables(call: Call, adamw: Path, run_folder: Path) -> None:
    terminal = call("report", adamw, run_folder)
    markdown = call("report", adamw, run_folder, "--format", "markdown")
    assert (terminal.code, markdown.code) == (0, 0), terminal.err
    nll = f"{read_run(run_folder).metrics['test']['samples']['nll']:.3f}"
    for text in (terminal.out, markdown.out):
        assert "Against adamw, mean" in text
        assert nll in text
    assert "| ivon, samples | " in markdown.out


def test_another_reference(call: Call, adamw: Path, run_folder: Path) -> None:
    done = call("report", adamw, run_folder, "--format", "markdown", "--reference", "ivon, mean")
    assert "| Against ivon, mean |" in done.out
    wrong = call("report", adamw, run_folder, "--reference", "ivon, men")
    assert (wrong.code, "'ivon, mean'" in wrong.err or "ivon, mean" in wrong.err) == (1, True)


def test_latex_goes_to_a_file_that_is_replaced_only_if_asked(call: Call, adamw: Path, tmp_path: Path) -> None:
    target = tmp_path / "tables.tex"
    words = ("report", adamw, "--format", "latex", "--output_file", target)
    assert call(*words).code == 0
    text = target.read_text(encoding="utf-8")
    assert text.startswith(r"% needs \usepackage{booktabs}")
    assert r"\toprule" in text
    refused = call(*words)
    assert (refused.code, "--overwrite" in refused.err) == (1, True)
    assert call(*words, "--overwrite").code == 0
    assert target.read_text(encoding="utf-8") == text


def test_a_comparison_says_what_is_missing(call: Call, comparison: Path) -> None:
    done = call("report", comparison)
    assert done.code == 0, done.err
    assert "What is missing" in done.out
    assert "IVON, mean: seed 1 (not run yet)" in done.out
    assert "Along the temperature" in done.out


def test_a_comparisons_page_is_in_its_folder(call: Call, comparison: Path) -> None:
    assert call("report", comparison, "--format", "html").code == 0
    data = embedded(comparison / "report.html")
    assert (data["name"], data["reference"]) == ("small_plan", "AdamW")
    (block,) = data["blocks"]
    assert (block["model"], block["task"]) == ("tiny", "reviews")
    assert block["splits"]["test"]["seeds"] == [0]  # IVON has no other
    assert {m["label"] for m in block["scales"]["maps"]} == {"ivon"}
    assert {curve["label"] for curve in block["curves"]} >= {"adamw", "ivon"}
    again = call("report", comparison, "--format", "html")
    assert (again.code, "--overwrite" in again.err) == (1, True)
    before = (comparison / "report.html").read_bytes()
    assert call("report", comparison, "--format", "html", "--overwrite").code == 0
    assert (comparison / "report.html").read_bytes() == before


def test_runs_that_cannot_be_told_apart_are_refused(call: Call, adamw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adamw, copy)
    done = call("report", adamw, copy)
    assert (done.code, "are both adamw with seed" in done.err) == (1, True)


def test_runs_of_different_tasks_are_refused(call: Call, adamw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adamw, copy)
    facts = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    facts["task"]["name"] = "another"
    (copy / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    done = call("report", adamw, copy)
    assert (done.code, "was trained on 'another'" in done.err or "on 'another'" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "html"], "say where to write the page"),
        (["--format", "html", "--split", "test", "--output_file", "x.html"], "--split has no effect on the page"),
        (["--output_file", "x.txt"], "--output_file needs a format"),
        (["--split", "tset"], "there is no split 'tset' here; there are test"),
    ],
)
def test_options_that_do_not_go_together(call: Call, adamw: Path, words: list[str], said: str) -> None:
    done = call("report", adamw, *words)
    assert (done.code, said in done.err) == (1, True), done.err


def test_what_is_no_folder_of_ours(call: Call, comparison: Path, adamw: Path, tmp_path: Path) -> None:
    none = call("report", tmp_path)
    assert (none.code, "has no plan.yaml and is no run folder" in none.err) == (1, True)
    derived = Path(shutil.copytree(adamw, tmp_path / "derived", ignore=shutil.ignore_patterns("predictions")))
    unmeasured = call("report", derived)
    assert (unmeasured.code, f"Measure it: varlora eval {derived} " in unmeasured.err) == (1, True), unmeasured.err
    mixed = call("report", comparison, adamw)
    assert (mixed.code, "report it alone" in mixed.err) == (1, True)
    reference = call("report", comparison, "--reference", "AdamW")
    assert (reference.code, "--reference is for run folders" in reference.err) == (1, True)
    assert call("report").code == 2
