"""`varlora tune`, and `eval` and `predict` of a run that was tuned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.workshop import Outcome, Workshop, reviews, write_rows
from varlora.io.folders import atomic_folder
from varlora.posterior import PredictionConfig
from varlora.posterior.manifest import write_tuned
from varlora.posterior.ops import temper
from varlora.runs.folder import read_run, write_derived
from varlora.runs.measure import measure
from varlora.runs.predict import predict_split
from varlora.runs.setting import reload_setting

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def validated(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with 30 validation rows, and a variance that is far too large."""
    from varlora.cli import main

    folder = tmp_path_factory.mktemp("validated")
    held_out = write_rows(folder / "held-out.jsonl", reviews(30, first=200))
    assert main(workshop.training(folder / "trained", validation_file=held_out, held_out="none")) == 0
    q = read_run(folder / "trained").posterior
    median = torch.cat([v.flatten() for v in q.variance.values()]).median()
    with atomic_folder(folder / "hot") as new:
        write_derived(new, temper(q, float(0.5**2 / median)), sources=[folder / "trained"], name="hot")
    return folder / "hot"


@pytest.fixture
def hot(validated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(validated, tmp_path / "hot"))


def measured(folder: Path, samples: int, *, temperature: float) -> Any:
    """The test rows' metrics, by hand."""
    run = read_run(folder)
    setting = reload_setting(run)
    q = temper(run.posterior, temperature)
    found = predict_split(setting, q, "test", PredictionConfig(samples=samples))
    return measure({"test": {"samples": found}})["test"]["samples"]


def test_tune_shows_what_was_tried_and_chosen(call: Call, hot: Path) -> None:
    done = call("tune", hot, "--no_progress", "--samples", 2, "--fractions", 0.1, "--standard_errors", 0)

    assert done.code == 0, done.err
    tuned = read_run(hot).posterior.meta.tuned
    assert tuned is not None
    for expected in ("τ and T", "so far", "chosen", "Chosen: ", f"varlora eval {hot}", "metrics.json was"):
        assert expected in done.out, expected
    table = json.loads((hot / "tune.json").read_text())
    assert table["sentence"] in done.out
    for row in table["candidates"]:
        assert f"{row['nll']:.4f}" in done.out
    assert "validation rows at τ = 0.25" in done.err

    back = call("tune", hot, "--reset")
    assert (back.code, "predicts as trained again" in back.out) == (0, True)
    assert read_run(hot).posterior.meta.tuned is None
    again = call("tune", hot, "--reset")
    assert (again.code, "nothing to take back" in again.err) == (1, True)


def test_tune_that_keeps_says_so(call: Call, hot: Path) -> None:
    done = call("tune", hot, "--no_progress", "--samples", 2, "--fractions", 0, "--standard_errors", 1e9)
    assert done.code == 0
    assert "Kept as trained" in done.out
    assert "posterior.json says nothing" in done.out
    assert read_run(hot).posterior.meta.tuned is None


def test_eval_and_predict_use_what_was_tuned(call: Call, hot: Path, workshop: Workshop, tmp_path: Path) -> None:
    cooled = measured(hot, 6, temperature=0.25)
    trained = measured(hot, 4, temperature=1.0)
    two = measured(hot, 2, temperature=0.25)
    write_tuned(hot, PredictionConfig(samples=6, temperature=0.25, logit_temperature=1.0), [{"op": "tune"}])
    file = tmp_path / "m.json"

    def evaluated(*words: object) -> Any:
        done = call(
            "eval",
            hot,
            "--no_progress",
            "--resamples",
            0,
            "--split",
            "test",
            "--output_file",
            file,
            "--overwrite",
            *words,
        )
        assert done.code == 0, done.err
        return done, json.loads(file.read_text())

    done, found = evaluated()
    assert "As `varlora tune` chose: τ = 0.25, 6 draws (--untuned: as trained)." in done.out
    assert found["metrics"]["test"]["samples"] == cooled
    assert (found["samples"], found["tuned"]["temperature"]) == (6, 0.25)
    assert evaluated("--samples", 2)[1]["metrics"]["test"]["samples"] == two
    done, found = evaluated("--untuned")
    assert "varlora tune" not in done.out
    assert found["metrics"]["test"]["samples"] == trained
    assert (found["samples"], found["tuned"]) == (4, None)

    bare = write_rows(tmp_path / "new.jsonl", [{"text": row["text"]} for row in reviews(9, first=100)])
    words = [
        "predict",
        hot,
        "--no_progress",
        "--input_file",
        bare,
        "--output_file",
        tmp_path / "a.jsonl",
        "--overwrite",
    ]
    confidences = []
    for extra, said in (((), "the average over 6 draws"), (("--untuned", "--samples", 4), "the average over 4 draws")):
        done = call(*words, *extra)
        assert (done.code, said in done.out) == (0, True)
        answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        confidences.append([answer["confidence"] for answer in answers])
    assert confidences[0] != confidences[1]


def test_a_tuned_mean_is_one_pass(call: Call, hot: Path, tmp_path: Path) -> None:
    write_tuned(hot, PredictionConfig(mode="mean", temperature=0, logit_temperature=2.0), [{"op": "tune"}])
    words = ["eval", hot, "--no_progress", "--resamples", 0, "--split", "test", "--output_file", tmp_path / "m.json"]
    done = call(*words)
    assert done.code == 0, done.err
    assert "the mean, logits divided by 2" in done.out
    assert json.loads((tmp_path / "m.json").read_text())["metrics"]["test"].keys() == {"mean"}
    refused = call(*words, "--samples", 4, "--overwrite")
    assert (refused.code, "--untuned" in refused.err) == (1, True)
    assert call(*words, "--samples", 4, "--untuned", "--overwrite").code == 0


def test_what_is_pruned_of_a_tuned_run_says_that_it_is_not_tuned(call: Call, hot: Path, tmp_path: Path) -> None:
    write_tuned(hot, PredictionConfig(samples=4, temperature=0.5, logit_temperature=1.0), [{"op": "tune"}])
    done = call("prune", hot, "--fraction", 0.1, "--output_dir", tmp_path / "pruned")
    assert done.code == 0
    assert "what `varlora tune` chose is left out" in done.err
    assert read_run(tmp_path / "pruned").posterior.meta.tuned is None


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--split", "test"], 1, "split is 'test', whose rows are there to be reported"),
        (["--temperatures", "-1"], 1, "temperatures has -1.0"),
        (["--samples", "0"], 1, "samples has 0"),
        (["--by", "luck"], 2, "invalid choice: 'luck'"),
        (["--temperature", "2"], 2, "--temperatures"),
    ],
)
def test_refusals(call: Call, hot: Path, words: list[str], code: int, message: str) -> None:
    refused = call("tune", hot, *words)
    assert (refused.code, message in refused.err) == (code, True), refused.err


def test_too_few_rows(call: Call, run_folder: Path) -> None:
    """The run of the other tests has a tenth of its training rows to validate on."""
    refused = call("tune", run_folder)
    assert (refused.code, "it needs 20" in refused.err) == (1, True)
    nowhere = call("tune", run_folder / "nowhere")
    assert (nowhere.code, "is not a folder that exists" in nowhere.err) == (1, True)


def test_rows_of_a_file_that_the_run_has_seen_are_told_and_none_that_is_a_test_row_decides(
    call: Call, hot: Path, tmp_path: Path
) -> None:
    config = read_run(hot).config
    files = {split: Path(getattr(config, f"{split}_file")) for split in ("train", "test")}
    words = ["--samples", 2, "--fractions", 0, "--temperatures", 1, "--no_progress"]

    refused = call("tune", hot, *words, "--validation_file", files["test"])
    tested = len(files["test"].read_text().splitlines())
    assert refused.code == 1
    assert f"has 0 labelled row(s) to choose on ({tested} others are test rows, too" in refused.err

    trained = len(files["train"].read_text().splitlines())
    told = call("tune", hot, *words, "--validation_file", files["train"])
    assert told.code == 0, told.err
    assert f"validation: {trained} of {trained} prompts are in train too" in told.err
    decided = call("decide", hot, "--coverage", 0.5, "--calibration_file", files["train"])
    assert f"calibration: {trained} of {trained} prompts are in train too" in decided.err

    measured_on = call("eval", hot, "--no_progress", "--resamples", 0, "--test_file", files["train"])
    assert f"test: {trained} of {trained} prompts are in train too" in measured_on.err

    other = write_rows(tmp_path / "other.jsonl", reviews(30, first=900))
    text = (hot / "config.yaml").read_text()
    (hot / "config.yaml").write_text(text.replace(str(files["train"]), str(tmp_path / "gone.jsonl")))
    for command in (
        ["tune", *words, "--overwrite", "--validation_file"],
        ["eval", "--no_progress", "--resamples", 0, "--test_file"],
        ["decide", "--coverage", 0.5, "--overwrite", "--calibration_file"],
    ):
        done = call(command[0], hot, *command[1:], other)
        assert done.code == 0, done.err
        assert (
            f"the data of {hot} cannot be read, so whether rows of other.jsonl are among those is not known" in done.err
        )
