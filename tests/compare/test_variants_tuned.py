"""Runs predicted with as `varlora tune` would choose: the same numbers, and nothing else of the run is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.plans import plan, variant_of
from small_runs import config, films, finish_herds, save_model, write_rows
from varlora.cli import main
from varlora.compare import variants as making
from varlora.compare import worker
from varlora.compare.gather import gather
from varlora.compare.variant_files import is_complete, load_variant, read_tuned, seconds
from varlora.compare.variants import ensure_variants
from varlora.compare.worker import execute_cell
from varlora.io.files import finite
from varlora.metrics import evaluate
from varlora.prediction.prediction_setup import modes_of
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.run import run
from varlora.runs.space import Grid
from varlora.runs.tune import Tuning, tuning_of

TUNED = variant_of(tune=True)
METHODS = ("ivon", "adamw", "laplace", "ensemble")
GRID = Grid(temperatures=(0.0, 4.0), samples=(2,), fractions=())
SAME_GRID = ("--temperatures", "0", "4", "--samples", "2", "--fractions", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), layers=1)


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One run of each kind that matters here: a Gaussian with much noise, a point, Laplace's, and an ensemble."""
    runs = {}
    for method in METHODS:
        options: dict[str, Any] = {"ess": 20.0, "lora_target_modules": "all-linear"} if method == "ivon" else {}
        runs[method] = finish_herds(tmp_path_factory.mktemp(method), model, method=method, max_steps=12, **options)
    return runs


@pytest.fixture
def ivon(finished: Mapping[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished["ivon"], tmp_path / "run"))


def little(run: RunFolder, grid: Grid, **given: Any) -> Tuning:
    """What `tuning_of` gives, of few candidates in place of `tune`'s own."""
    assert grid == Grid(fractions=())
    return tuning_of(run, GRID, **given)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is tried: where it is not about what is tried."""
    monkeypatch.setattr(making, "tuning_of", little)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_tune_and_then_eval_give(
    finished: Mapping[str, Path], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: tuple[str, ...] = ()
    if method in ("ivon", "laplace"):  # with as many draws as are tried by default it takes long
        monkeypatch.setattr(making, "tuning_of", little)
        words = SAME_GRID
    folder, copy = (Path(shutil.copytree(finished[method], tmp_path / name)) for name in ("run", "copy"))
    ensure_variants(folder, [TUNED])
    assert is_complete(folder, [TUNED])

    assert main(["tune", str(copy), "--no_progress", *words]) == 0
    target = tmp_path / "measured.json"
    assert main(["eval", str(copy), "--no_progress", "--resamples", "0", "--output_file", str(target)]) == 0
    found, measured = read_run(folder), json.loads(target.read_text())

    chosen = read_tuned(found, TUNED)
    assert (None if chosen is None else chosen.to_dict()) == measured["tuned"]
    assert method != "ivon" or (chosen is not None and chosen.temperature != 1)  # otherwise this test would tell little
    mode = chosen.mode if chosen is not None else modes_of(found.posterior, found.config.samples)[-1]
    prediction = load_variant(found, TUNED, "test")
    assert prediction.mode == mode
    assert (
        finite(evaluate(prediction.log_probs, prediction.labels)).items() <= measured["metrics"]["test"][mode].items()
    )


@pytest.mark.usefixtures("narrow")
def test_all_that_tune_tries_is_kept_but_what_could_be_pruned(ivon: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(ivon, tmp_path / "copy")
    assert main(["tune", str(copy), "--no_progress", *SAME_GRID]) == 0
    ensure_variants(ivon, [TUNED])
    [file] = ivon.glob("variants/*/variant.json")
    facts, table = json.loads(file.read_text()), json.loads((copy / "tune.json").read_text())
    assert facts["variant"] == {"tune": True}
    assert facts["tuning"] == {name: table[name] for name in facts["tuning"]}
    assert table.keys() - facts["tuning"].keys() == {"made", "varlora", "made_from"}


@pytest.mark.usefixtures("narrow")
def test_the_run_and_its_other_rows_are_what_they_are_without_it(
    ivon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "FRACTIONS", (0.1, 0.9))
    others = [
        variant_of(temperature=4, samples=6),
        variant_of(mode="mean", logit_temperature="validation"),
        variant_of(prune="validation", prune_by="magnitude", samples=2),
    ]
    copy = Path(shutil.copytree(ivon, tmp_path / "copy"))
    before = contents(ivon)
    ensure_variants(copy, others)
    ensure_variants(ivon, [TUNED, *others])
    after = contents(ivon)
    assert {name: after[name] for name in before} == before
    assert read_run(ivon).posterior.meta.tuned is None
    for variant in others:
        for split in ("validation", "test"):
            with_it, without = (load_variant(read_run(folder), variant, split) for folder in (ivon, copy))
            assert torch.equal(with_it.log_probs, without.log_probs)
            assert with_it.logit_temperature == without.logit_temperature


@pytest.mark.usefixtures("narrow")
def test_made_again_and_of_a_tuned_run_every_byte_is_the_same(ivon: Path) -> None:
    def predictions() -> dict[str, bytes]:
        return {name: found for name, found in contents(ivon / "variants").items() if name.endswith(".parquet")}

    ensure_variants(ivon, [TUNED])
    before = predictions()
    assert len(before) == 2
    stamps = {path: path.stat().st_mtime_ns for path in ivon.rglob("*")}
    ensure_variants(ivon, [TUNED])
    assert {path: path.stat().st_mtime_ns for path in ivon.rglob("*")} == stamps
    shutil.rmtree(ivon / "variants")
    assert main(["tune", str(ivon), "--no_progress", "--temperatures", "4", "--samples", "2", "--fractions", "0"]) == 0
    ensure_variants(ivon, [TUNED])
    assert predictions() == before
    assert (seconds(read_run(ivon), TUNED, "test") or 0) > 0


def test_what_is_kept_as_trained_is_the_runs_own_predictions(ivon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        making, "tuning_of", lambda run, _, **given: tuning_of(run, replace(GRID, standard_errors=1e6), **given)
    )
    ensure_variants(ivon, [TUNED])
    found = read_run(ivon)
    assert read_tuned(found, TUNED) is None
    assert not list(ivon.rglob("variants/**/*.parquet"))
    assert torch.equal(load_variant(found, TUNED, "test").log_probs, found.prediction("test", "samples").log_probs)
    assert seconds(found, TUNED, "test") == found.facts["seconds"]["predict/test/samples"]


def test_before_it_is_made_it_is_missing_and_says_so(ivon: Path) -> None:
    assert not is_complete(ivon, [TUNED])
    with pytest.raises(ValueError, match=r"has not been predicted with as \{tune: true\} yet"):
        load_variant(read_run(ivon), TUNED, "test")


def test_without_validation_rows_it_is_refused(ivon: Path) -> None:
    facts = json.loads((ivon / "run.json").read_text())
    del facts["task"]["rows"]["validation"]
    (ivon / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"as \{tune: true\}: there are no validation rows to choose on"):
        ensure_variants(ivon, [TUNED])
    assert not is_complete(ivon, [TUNED])


def test_too_few_validation_rows_are_refused(model: str, tmp_path: Path) -> None:
    same = write_rows(tmp_path / "same.jsonl", films(16))  # as its test rows
    settings = config(tmp_path, model, method="adamw", max_steps=2, validation_file=same)
    run(settings, progress=False)
    with pytest.raises(ValueError, match=r"0 labelled row\(s\) to choose on \(16 others are test rows, too"):
        ensure_variants(settings.output_dir, [TUNED])
    assert not is_complete(settings.output_dir, [TUNED])


def test_completions_are_refused(model: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a cat", "completion": " film"}] * 24)
    files = {"train_file": rows, "validation_file": rows, "test_file": rows}
    settings = config(tmp_path, model, max_steps=2, held_out="none", **files)
    run(settings, progress=False)
    with pytest.raises(ValueError, match=r"as \{tune: true\}: its rows ask for completions, which have no classes"):
        ensure_variants(settings.output_dir, [TUNED])


@pytest.mark.parametrize("changed", ["rows", "answers"])
def test_changed_validation_rows_are_refused(finished: Mapping[str, Path], tmp_path: Path, changed: str) -> None:
    folder = Path(shutil.copytree(finished["adamw"], tmp_path / "run"))
    ensure_variants(folder, [variant_of(mode="mean", logit_temperature="validation")])
    settings = read_run(folder).config
    rows = [json.loads(line) for line in Path(settings.validation_file or "").read_text().splitlines()]
    if changed == "answers":
        answers = sorted({row["label"] for row in rows})
        other = dict(zip(answers, [*answers[1:], answers[0]], strict=True))
        rows = [{**row, "label": other[row["label"]]} for row in rows]
    file = write_rows(tmp_path / "changed.jsonl", rows if changed == "answers" else rows[:-1])
    with pytest.raises(ValueError, match="the validation rows are no longer those of"):
        ensure_variants(folder, [TUNED], config=replace(settings, validation_file=file))


@pytest.mark.usefixtures("narrow")
def test_a_new_row_of_a_trained_cell_is_predicted_and_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was trained again")

    short = {"settings.max_steps": 2}
    first = plan(tmp_path, short)
    for cell in first.cells():
        cell.prepare()
        execute_cell(cell)
    made_by = [cell.code_version for cell in first.cells()]
    monkeypatch.setattr(worker, "run", refuse)

    changes = {**short, "methods.ivon.rows.tuned": {"tune": True}}
    asked = plan(tmp_path, changes)
    assert [cell.state() for cell in asked.cells()] == ["done", "partial"]
    assert any("tuned: seed 0 (trained, not predicted" in gap for gap in gather(asked, asked.cells()).blocks[0].missing)
    # varlora has changed since
    monkeypatch.setattr("varlora.compare.plan.code_version", lambda method, task: "0123456789")
    asked = plan(tmp_path, changes, code_versions=made_by)
    cell = asked.cells()[1]
    assert (cell.state(), cell.code_version) == ("partial", made_by[1])
    cell.prepare()
    execute_cell(cell)

    assert cell.state() == "done"
    [block] = gather(asked, asked.cells()).blocks
    assert block.comparison is not None
    assert "tuned" in block.comparison.methods
    chosen = read_tuned(read_run(cell.folder), TUNED)
    how = "as trained" if chosen is None else chosen.describe()
    assert f"tuned, by validation rows: {how} (seed 0)" in block.notes
