"""A cell's key and its state."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from compare.plans import plan
from small_runs import films, write_rows
from varlora.compare import Cell
from varlora.compare import cell as cell_module
from varlora.compare.cell import identity_of, make_cell
from varlora.compare.content import Generated
from varlora.runs.checkpoints import checkpoints_of
from varlora.runs.config import PLACES, RunConfig
from varlora.training.checkpoint_files import begin_checkpoint, finish_checkpoint

OTHERS: dict[str, Any] = {
    "model_name_or_path": "other/model",
    "method": "adamw",
    "lr_scheduler_type": "cosine",
    "task": "sst2",
    "task_dir": None,
    "temperature_scaling": False,  # IVON's default has it
}


def config(**options: Any) -> RunConfig:
    return RunConfig.from_dict({"model_name_or_path": "some/model", "task": "arc_easy", "output_dir": "-", **options})


def another(field: dataclasses.Field[Any], hints: dict[str, Any]) -> Any:
    """A value that differs from the default."""
    if field.name in OTHERS:
        return OTHERS[field.name]
    words = [word for part in (hints[field.name], *getattr(hints[field.name], "__args__", ())) for word in _words(part)]
    if words:
        return next(word for word in words if word != field.default)
    kinds = (hints[field.name], *getattr(hints[field.name], "__args__", ()))
    if bool in kinds:
        return not field.default
    if int in kinds or float in kinds:
        return (
            {0: 0.5, None: 1}.get(field.default, (field.default or 0) + 1)
            if float in kinds
            else (field.default or 0) + 1
        )
    return "text"


def _words(kind: Any) -> list[str]:
    return [word for word in getattr(kind, "__args__", ()) if isinstance(word, str)]


def test_every_setting_but_the_places_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunConfig, "__post_init__", lambda self: None)  # combinations do not matter here
    monkeypatch.setattr(cell_module, "contents_of", lambda *_: {})
    hints = get_type_hints(RunConfig)
    base = config()
    keys = {identity_of(base)}
    fields = [f for f in dataclasses.fields(RunConfig) if f.name not in (*PLACES, "method_options")]
    for field in fields:
        value = another(field, hints)
        if value is not None:
            changed = replace(base, **{field.name: value})
            assert getattr(changed, field.name) != getattr(base, field.name), field.name
            keys.add(identity_of(changed))
    assert len(keys) == len(fields)  # task_dir is no setting of its own here; the unchanged key is one
    assert identity_of(replace(base, **dict.fromkeys(PLACES, "elsewhere"))) == identity_of(base)


def test_cells_share_the_states_of_frozen_layers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"lora_layers": "top:1", "cache_frozen_layers": True}
    names: dict[str, Any] = {"model": "m", "task": "t", "method": "a", "code_version": "1", "variants": ()}
    cells = [
        make_cell(config=config(**options, **more), output_dir=tmp_path, **names)
        for more in ({}, {"frozen_layers_dir": "mine"}, {"seed": 1})
    ]
    places = [cell.config.frozen_layers_dir for cell in cells]
    assert places == [str(tmp_path / "frozen_layers"), "mine", str(tmp_path / "frozen_layers")]
    assert cells[0].identity == cells[1].identity
    assert make_cell(config=config(), output_dir=tmp_path, **names).config.frozen_layers_dir is None


def test_every_option_of_a_method_changes_the_key() -> None:
    keys = [
        identity_of(config(method="swag")),
        *(identity_of(config(method="swag", **{name: 0.25})) for name in ("learning_rate", "weight_decay")),
        *(identity_of(config(method="swag", snapshots=number)) for number in (10, 11)),  # 10 is the default, and given
    ]
    assert len(set(keys)) == len(keys)
    assert identity_of(config(method="swag", snapshots=None)) == keys[0]


@pytest.mark.parametrize(
    ("method", "options", "identity"),
    [
        ("adamw", {}, "2402325258b9"),
        (
            "ivon",
            {"recipe": "cong2024", "ess": 1e7, "hess_init": 3e-4, "draws": 2, "learning_rate": 0.02},
            "8ca0c875874e",
        ),
        ("ensemble", {"members": 3, "weight_decay": 0.0}, "474b468ff46a"),
        ("laplace", {"prior_choice": "validation", "curvature": "diag"}, "20029bf3bef2"),
    ],
)
def test_cells_of_the_version_before_keep_their_key(method: str, options: dict[str, Any], identity: str) -> None:
    assert identity_of(config(method=method, seed=3, **options)) == identity


def test_a_setting_at_its_default_is_the_same_as_none(tmp_path: Path) -> None:
    assert identity_of(config(lora_r=8)) == identity_of(config())
    assert identity_of(config(ess=5)) == identity_of(config(ess=5.0))


def test_local_data_count_by_content_and_not_by_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "rows.jsonl", films(4))

    def found(name: str) -> str:
        return identity_of(config(task=None, train_file=str(tmp_path / name / "rows.jsonl")))

    assert found("a") == found("b")
    write_rows(tmp_path / "b" / "rows.jsonl", films(4, offset=1))
    assert found("a") != found("b")
    as_test = config(
        task=None, train_file=str(tmp_path / "a" / "rows.jsonl"), test_file=str(tmp_path / "a" / "rows.jsonl")
    )
    assert identity_of(as_test) != found("a")


def test_generated_tasks_count_by_their_rows(tmp_path: Path) -> None:
    def found(folder: str, **sizes: int) -> str:
        task = Generated(train=8, validation=4, test=4, **sizes)
        return identity_of(config(task=None, **task.files(tmp_path / folder)), task)

    assert found("a") == found("b")
    assert found("a") != found("a", seed=1)


def test_the_code_version_is_in_the_folders_name(tmp_path: Path) -> None:
    def made(version: str) -> Cell:
        return make_cell(
            model="m",
            task="t",
            method="ivon",
            config=config(seed=3),
            output_dir=tmp_path,
            code_version=version,
            variants=(),
        )

    one, other = made("0123456789"), made("9876543210")
    assert one.folder == tmp_path / "m" / "t" / f"ivon-seed-3-{one.identity}-0123456789"
    assert one.folder != other.folder
    assert one.made_by("9876543210") == other


def test_a_cell_survives_json(tmp_path: Path) -> None:
    for one in plan(tmp_path).cells():
        assert Cell.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def touch(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_the_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = plan(tmp_path).cells()[1]
    assert one.state() == "missing"
    begin_checkpoint(checkpoints_of(one.config) / "checkpoint-2", processes=1, rows_per_step=1)
    assert one.state() == "missing"  # a kill left it half-written
    finish_checkpoint(checkpoints_of(one.config) / "checkpoint-2")
    assert one.state() == "unfinished"
    touch(one.error_file, "Traceback")
    assert one.state() == "failed"
    one.error_file.unlink()
    for name in ("config.yaml", "run.json"):
        touch(one.folder / name)
    assert one.state() == "unfinished"
    touch(one.folder / "metrics.json")
    monkeypatch.setattr(cell_module, "is_complete", lambda folder, variants: False)
    assert one.state() == "partial"
    touch(one.error_file, "Traceback")
    assert one.state() == "failed"
    monkeypatch.setattr(
        cell_module, "is_complete", lambda folder, variants: (folder, variants) == (one.folder, one.variants)
    )
    assert one.state() == "done"


def test_preparing_writes_the_rows_and_removes_what_a_kill_left(tmp_path: Path) -> None:
    one = plan(tmp_path).cells()[0]
    half = one.folder.with_name(f".{one.folder.name}.new-01234567")
    touch(half / "posterior.json")
    one.prepare()
    assert not half.exists()
    assert one.config.train_file is not None
    assert Path(one.config.train_file).read_text().count("\n") == 16


def fake_run(one: Cell, **changes: Any) -> None:
    settings = {**one.config.to_dict(), **changes}
    touch(one.folder / "config.yaml", json.dumps(settings))
    for name in ("run.json", "metrics.json"):
        touch(one.folder / name, "{}")


def test_another_versions_cell_is_taken_when_it_is_named(tmp_path: Path) -> None:
    asked = plan(tmp_path)
    one = asked.cells()[0]
    old = one.made_by("0123456789")
    fake_run(old, output_dir="where it was made", train_file="where it was read")
    assert one.others() == ["0123456789"]
    assert asked.cells()[0] == one  # not unless it is named
    named = replace(asked, code_versions=("abcdefabcd", "0123456789"))
    assert named.cells()[0] == old
    assert named.cells()[0].code_version == "0123456789"
    fake_run(one)
    assert named.cells()[0] == one  # what this version has made goes before


def test_another_versions_cell_with_another_default_is_not_taken(tmp_path: Path) -> None:
    asked = plan(tmp_path, code_versions=["0123456789"])
    one = replace(asked, code_versions=()).cells()[0]
    fake_run(one.made_by("0123456789"), lora_alpha=99)
    assert one.others() == []
    assert asked.cells()[0] == one


def test_the_modification_time_of_data_does_not_count(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", films(4))
    before = identity_of(config(task=None, train_file=rows))
    os.utime(rows, (0, 0))
    assert identity_of(config(task=None, train_file=rows)) == before
