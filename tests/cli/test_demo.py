"""`varlora demo`: what it hands to `compare`, and which folders it takes, replaces and refuses."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cli.workshop import Outcome
from small_runs import films, save_model, write_rows
from varlora.cli import compare, demo
from varlora.compare import read_plan
from varlora.demo.data import plan_file
from varlora.runs.folder import read_run

Call = Callable[..., Outcome]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """What `varlora compare` is asked."""
    arguments: list[Namespace] = []
    monkeypatch.setattr(compare, "execute", arguments.append)
    return arguments


def begun(folder: Path, name: str) -> Path:
    """The folder of a comparison of that name."""
    folder.mkdir()
    values = {**read_plan(plan_file()).to_dict(), "name": name}
    (folder / "plan.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def test_compare_gets_the_plan_and_the_options(call: Call, handed: list[Namespace], tmp_path: Path) -> None:
    assert call("demo", "--output_dir", tmp_path / "demo", "--seeds", 4, 5, "--no_progress").code == 0
    (arguments,) = handed
    assert (arguments.plan, arguments.seeds) == (str(plan_file()), [4, 5])
    assert (arguments.output_dir, arguments.no_progress) == (str(tmp_path / "demo"), True)
    assert not arguments.dry_run


@pytest.mark.parametrize(
    ("words", "processors", "asked"),
    [
        ([], 8, ("local", 2)),
        ([], 1, ("inline", None)),
        (["--workers", 3], 8, ("local", 3)),
        (["--workers", 1], 8, ("inline", None)),
    ],
)
def test_two_processes_train_unless_there_is_one_processor(
    call: Call,
    handed: list[Namespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[object],
    processors: int,
    asked: tuple[str, int | None],
) -> None:
    monkeypatch.setattr(demo, "processors", lambda: processors)
    assert call("demo", "--output_dir", tmp_path / "demo", *words).code == 0
    assert (handed[0].executor, handed[0].workers) == asked


def test_the_real_demo_brings_its_rows_and_has_a_folder_of_its_own(
    call: Call, handed: list[Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_show_confidences", lambda plan: None)
    monkeypatch.setattr(demo, "_locate_model", lambda file: None)
    assert call("demo").code == 0
    (first,) = handed
    assert (first.output_dir, first.seeds, first.data) == ("demo", None, None)

    assert call("demo", "--model", "smollm2").code == 0
    real = handed[1]
    assert (real.plan, real.output_dir) == (str(plan_file("smollm2")), "demo-smollm2")
    assert Path(real.data) == plan_file("smollm2").parent


def test_a_demo_is_not_deleted_for_a_model_that_is_not_there(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"name": "tiny", "settings": {}, "models": {"tiny": {"model_name_or_path": "package:not_there/m.gguf"}}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    monkeypatch.setattr("varlora.demo.data.plan_file", lambda model: tmp_path / "tiny.yaml")
    before = tmp_path / "out" / "plan.yaml"
    before.parent.mkdir()
    before.write_text("name: tiny", encoding="utf-8")

    refused = call("demo", "--model", "smollm2", "--output_dir", before.parent, "--overwrite")

    assert (refused.code, "there is no package 'not_there'; install it first" in refused.err) == (1, True), refused.err
    assert before.is_file()


def test_the_real_demo_says_how_sure_each_method_is(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = [{"text": "a cow hen", "label": -1}]
    files = {
        "train_file": write_rows(tmp_path / "train.jsonl", films(16)),
        "validation_file": write_rows(tmp_path / "validation.jsonl", films(8, offset=16)),
        "test_file": write_rows(tmp_path / "test.jsonl", films(8, offset=1)),
        "ood_file": write_rows(tmp_path / "ood.jsonl", strange),
    }
    values = {
        "name": "tiny",
        "reference": "AdamW",
        "seeds": [0],
        "settings": {"lora_target_modules": "q_proj", "max_steps": 2, "learning_rate": 0.02, "samples": 2},
        "models": {"tiny": {"model_name_or_path": save_model(tmp_path / "model", layers=1)}},
        "tasks": {"films": files},
        "methods": {
            "adamw": {"settings": {"method": "adamw"}, "rows": {"AdamW": {"mode": "mean"}}},
            "ivon": {"settings": {"method": "ivon"}, "rows": {"IVON, 2 samples": {"mode": "samples"}}},
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.setattr("varlora.demo.data.plan_file", lambda model: tmp_path / "tiny.yaml")
    monkeypatch.setattr(demo, "TEXTS", ("a fine cat film", "a cow hen"))

    done = call("demo", "--model", "smollm2", "--output_dir", tmp_path / "out", "--no_progress", "--workers", 1)

    assert done.code == 0, done.err
    shown = done.out.partition("How sure each is (seed 0)")[2]
    plan = read_plan(tmp_path / "tiny.yaml", output_dir=tmp_path / "out")
    sure = []
    for cell, mode in zip(plan.cells(), ("mean", "samples"), strict=True):
        probs = read_run(cell.folder).prediction("ood", mode).probs
        sure.append(f"{float(probs.max()):.0%}")
        answer = ("negative", "positive")[int(probs.argmax())]
        assert f"{answer}, {sure[-1]}" in shown  # the same text as the row's
    assert f"on average AdamW is {sure[0]} sure of it, IVON, 2 samples is {sure[1]} sure of it" in " ".join(
        shown.split()
    )
    assert "a cow hen (belongs to no class)" in shown


def test_a_demo_goes_on_and_is_replaced_if_asked(call: Call, handed: list[Namespace], tmp_path: Path) -> None:
    folder = begun(tmp_path / "demo", read_plan(plan_file()).name)
    assert call("demo", "--output_dir", folder).code == 0
    assert (folder / "plan.yaml").is_file()
    assert call("demo", "--output_dir", folder, "--overwrite").code == 0
    assert not folder.exists()
    assert len(handed) == 2


@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_nothing_else_is_touched(call: Call, handed: list[Namespace], tmp_path: Path, words: list[str]) -> None:
    folder = begun(tmp_path / "mine", "my-study")
    done = call("demo", "--output_dir", folder, *words)
    assert done.code == 1
    assert "holds files that are not of this demo, so it is neither used nor replaced" in done.err
    assert (folder / "plan.yaml").is_file()
    assert handed == []


def test_a_demo_of_an_earlier_version(call: Call, handed: list[Namespace], tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{}", encoding="utf-8")
    done = call("demo", "--output_dir", tmp_path)
    assert (done.code, handed) == (1, [])
    assert "the demo of an earlier version of varlora, which this one cannot go on with" in done.err
    done = call("report", tmp_path)
    assert done.code == 1
    assert f"varlora report {tmp_path}/runs/*" in done.err
    assert call("demo", "--output_dir", tmp_path, "--overwrite").code == 0
    assert not tmp_path.exists()
