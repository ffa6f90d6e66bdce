"""`varlora eval` and `varlora predict` with a threshold: which rows are answered, and sets of answers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from cli.workshop import TEST, VALIDATION, Outcome, Workshop, write_rows
from varlora.metrics import clopper_pearson, conformal_rank
from varlora.posterior import PredictionConfig
from varlora.posterior.manifest import write_tuned
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import choose_config
from varlora.runs.folder import read_run
from varlora.runs.predict import predict_split
from varlora.runs.setting import reload_setting

Call = Callable[..., Outcome]


def confidences(prediction: Prediction) -> list[float]:
    return sorted(prediction.probs.max(1).values.tolist(), reverse=True)


def evaluated(call: Call, run: Path, file: Path, *words: object) -> tuple[Outcome, Any]:
    done = call("eval", run, "--no_progress", "--resamples", 0, "--output_file", file, "--overwrite", *words)
    assert done.code == 0, done.err
    return done, json.loads(file.read_text())["selective"]


def test_eval_answers_the_surest(call: Call, run: Path, tmp_path: Path) -> None:
    done, found = evaluated(call, run, tmp_path / "m.json", "--coverage", "0.9")

    stored = read_run(run).prediction("validation", "samples")
    value = confidences(stored)[conformal_rank(60, "0.1") - 1]  # k from above
    assert found["threshold"] | {"value": pytest.approx(value)} == found["threshold"]
    assert (found["mode"], found["draws"], found["threshold"]["sureness"]) == ("samples", 4, "confidence")
    assert found["chosen_on"] == {
        "source": "validation",
        "rows": 60,
        "left_out": 0,
        "also_used_for": [],
        "loaded_as": "float32",
    }
    test = read_run(run).prediction("test", "samples")
    answered = test.probs.max(1).values >= value - 1e-12
    right = int(((test.probs.argmax(1) == test.labels) & answered).sum())
    number = int(answered.sum())
    assert found["splits"]["test"]["answered"] == {
        "rows": 45,
        "answered": number,
        "share_answered": number / 45,
        "accuracy": right / number,
        "accuracy_low": clopper_pearson(right, number)[0],
        "accuracy_high": clopper_pearson(right, number)[1],
        "accuracy_of_all": pytest.approx(float((test.probs.argmax(1) == test.labels).double().mean())),
    }
    assert {split: of["guarantee"] for split, of in found["splits"].items()} == {
        "validation": "chosen here",
        "test": "holds",
        "shift": "none",
    }
    for said in (
        f"Answered: rows of confidence >= {value:.4g}. At least 90 % of new rows like these 60 are answered",
        f"{number} of 45",
        "No guarantee for shift: it is for rows drawn as the validation rows are",
    ):
        assert said in done.out
    assert "The guarantee is approximate" not in done.out


def test_predict_marks_the_same_rows(call: Call, run: Path, tmp_path: Path) -> None:
    words = ["--coverage", "0.7", "--prediction_sets", "0.8"]
    _, found = evaluated(call, run, tmp_path / "m.json", *words)
    bare = write_rows(tmp_path / "new.jsonl", [{"text": row["text"]} for row in TEST])
    command = ["predict", run, "--no_progress", "--samples", 4, "--input_file", bare, *words]

    done = call(*command, "--output_file", tmp_path / "a.jsonl")

    assert done.code == 0, done.err
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    counted = found["splits"]["test"]
    assert 0 < sum(answer["answered"] for answer in answers) == counted["answered"]["answered"] < 45
    for answer in answers:
        assert answer["answered"] is (answer["confidence"] >= found["threshold"]["value"] - 1e-12)
        within = [k for k, p in answer["probabilities"].items() if 1 - p <= found["set_threshold"]["value"] + 1e-12]
        assert answer["set"] == within
    assert sum(len(a["set"]) for a in answers) / 45 == pytest.approx(counted["sets"]["mean_size"])
    right = [row["label"] in answer["set"] for row, answer in zip(TEST, answers, strict=True)]
    assert sum(right) / 45 == pytest.approx(counted["sets"]["coverage"])
    for said in ("(`answered` in the file)", "(`set` in the file)", "At least 80 % of new rows like these 60 have the"):
        assert said in done.out

    assert call(*command, "--output_file", tmp_path / "a.parquet").code == 0
    assert pq.read_table(tmp_path / "a.parquet").select(["answered", "set"]).to_pylist() == [
        {"answered": a["answered"], "set": a["set"]} for a in answers
    ]


def test_sets_alone(call: Call, run: Path, tmp_path: Path) -> None:
    done, found = evaluated(call, run, tmp_path / "m.json", "--prediction_sets", "0.8", "--set_score", "aps")
    assert "threshold" not in found
    assert found["set_threshold"]["score"] == "aps"
    assert f"{100 * found['splits']['test']['sets']['coverage']:.1f} %" in done.out
    assert "Sets by aps. At least 80 %" in done.out


def test_an_accuracy_that_can_be_guaranteed_and_one_that_cannot(call: Call, run: Path, tmp_path: Path) -> None:
    done, found = evaluated(call, run, tmp_path / "m.json", "--target_accuracy", "0.2", "--delta", "0.1")
    threshold = found["threshold"]
    assert (threshold["value"], threshold["answered"], threshold["delta"]) == (None, 60, 0.1)  # every row
    assert threshold["bound"] >= 0.2
    assert "Answered: every row. At least 20 % of the answers to new rows like these 60 are right" in done.out

    for command in (
        ["eval", run, "--output_file", tmp_path / "refused.json"],
        ["predict", run, "--input_file", write_rows(tmp_path / "n.jsonl", TEST), "--output_file", tmp_path / "r.jsonl"],
    ):
        refused = call(*command, "--no_progress", "--target_accuracy", "0.99")
        assert (refused.code, "an accuracy of 99 % among the answered cannot be guaranteed" in refused.err) == (1, True)
        assert refused.out == ""
        assert not (tmp_path / "refused.json").exists()
        assert not (tmp_path / "r.jsonl").exists()


def test_other_measures_of_sureness(call: Call, run: Path, tmp_path: Path) -> None:
    for measure in ("entropy", "mutual_information"):
        done, found = evaluated(call, run, tmp_path / "m.json", "--coverage", "0.6", "--sureness", measure)
        value = found["threshold"]["value"]
        assert found["threshold"]["sureness"] == measure
        assert value < 0
        assert f"rows of {measure.replace('_', ' ')} <= {-value:.4g}" in done.out
    words = ["--coverage", "0.6", "--sureness", "mutual_information", "--samples", 0]
    refused = call("eval", run, "--no_progress", *words)
    assert (refused.code, "predict with several draws" in refused.err) == (1, True)


def test_few_validation_rows_answer_everything(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """The run of the other tests has two."""
    done, found = evaluated(call, run_folder, tmp_path / "m.json", "--coverage", "0.9", "--split", "test")
    assert (found["threshold"]["value"], found["splits"]["test"]["answered"]["share_answered"]) == (None, 1.0)
    assert "2 rows are too few to leave any out at 90 % (9 would do)" in done.out


def test_the_validation_rows_are_predicted_as_the_others_are(call: Call, run: Path, tmp_path: Path) -> None:
    def value(*words: object) -> float:
        options = ["--coverage", "0.8", "--split", "test", *words]
        return float(evaluated(call, run, tmp_path / "m.json", *options)[1]["threshold"]["value"])

    def expected(samples: int) -> float:
        folder = read_run(run)
        setting = reload_setting(folder)
        found = predict_split(setting, folder.posterior, "validation", choose_config(folder.posterior, samples))
        assert isinstance(found, Prediction)
        return confidences(found)[conformal_rank(60, "0.2") - 1]

    stored = value()
    assert stored == pytest.approx(expected(4), abs=1e-12)
    assert value("--samples", 2) == pytest.approx(expected(2), abs=1e-12) != stored
    assert value("--samples", 0) == pytest.approx(expected(0), abs=1e-12) != stored
    shutil.rmtree(run / "predictions")
    assert value() == stored
    write_tuned(run, PredictionConfig(samples=4, temperature=4, logit_temperature=1.0), [{"op": "tune"}])
    assert value() == pytest.approx(expected(4), abs=1e-12) != stored
    assert value("--untuned") == stored


def test_stored_predictions_of_a_tuned_run_are_not_used(call: Call, run: Path, tmp_path: Path) -> None:
    before = evaluated(call, run, tmp_path / "m.json", "--coverage", "0.8")[1]["threshold"]["value"]
    write_tuned(run, PredictionConfig(samples=4, temperature=9, logit_temperature=1.0), [{"op": "tune"}])
    warmer = evaluated(call, run, tmp_path / "m.json", "--coverage", "0.8")[1]["threshold"]["value"]
    assert warmer != pytest.approx(before, abs=1e-9)
    write_tuned(run, PredictionConfig(samples=4, logit_temperature=3.0), [{"op": "tune"}])
    done, found = evaluated(call, run, tmp_path / "m.json", "--coverage", "0.8")
    assert 0.5 <= found["threshold"]["value"] < before
    assert found["chosen_on"]["also_used_for"] == ["`varlora tune` chose how to predict"]
    assert "The guarantee is approximate: on the same validation rows `varlora tune` chose how to predict" in done.out
    assert {split: of["guarantee"] for split, of in found["splits"].items()} == {
        "validation": "chosen here",
        "test": "approximate",
        "shift": "none",
    }
    assert "holds" not in done.out


def test_rows_that_are_reported_are_not_chosen_on(call: Call, run: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", [*VALIDATION[:13], *TEST[:5]])
    words = ["--coverage", "0.8", "--test_file", other]
    done, found = evaluated(call, run, tmp_path / "m.json", *words)
    assert (found["chosen_on"]["rows"], found["chosen_on"]["left_out"]) == (47, 13)
    assert "13 rows of validation are reported, too" in done.err
    stored = read_run(run).prediction("validation", "samples").probs[13:].max(1).values.sort(descending=True).values
    assert found["threshold"]["value"] == pytest.approx(float(stored[conformal_rank(47, "0.2") - 1]))

    everything = write_rows(tmp_path / "all.jsonl", VALIDATION)
    refused = call("eval", run, "--no_progress", "--coverage", "0.8", "--test_file", everything)
    assert (refused.code, "60 others are reported, too" in refused.err) == (1, True)
    refused = call("eval", run, "--no_progress", "--coverage", "0.8", "--split", "validation")
    assert (refused.code, "only validation rows are to be reported" in refused.err) == (1, True)


def test_rows_of_another_file_take_the_validation_rows_place(call: Call, run: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "mine.jsonl", TEST)
    words = ["--coverage", "0.8", "--calibration_file", file, "--split", "validation"]
    _, found = evaluated(call, run, tmp_path / "m.json", *words)
    assert found["chosen_on"] == {
        "source": "mine.jsonl",
        "rows": 45,
        "left_out": 0,
        "also_used_for": [],
        "loaded_as": "float32",
    }
    own = read_run(run).prediction("test", "samples")
    assert found["threshold"]["value"] == pytest.approx(confidences(own)[conformal_rank(45, "0.2") - 1], abs=1e-12)
    assert found["splits"]["validation"]["guarantee"] == "if drawn alike"


def test_a_run_without_validation_rows(call: Call, run: Path, tmp_path: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    del facts["task"]["rows"]["validation"]
    (run / "run.json").write_text(json.dumps(facts))
    refused = call("eval", run, "--no_progress", "--coverage", "0.9", "--split", "test")
    assert refused.code == 1
    assert "has no validation rows to choose a threshold on" in refused.err
    assert "--calibration_file" in refused.err


def test_data_that_have_changed_are_predicted_anew(call: Call, run: Path, graded: Path, tmp_path: Path) -> None:
    config = (run / "config.yaml").read_text()
    new = write_rows(tmp_path / "new.jsonl", VALIDATION[:40])
    (run / "config.yaml").write_text(config.replace(str(graded.parent / "validation.jsonl"), str(new)))
    done, found = evaluated(call, run, tmp_path / "m.json", "--coverage", "0.8", "--split", "test")
    assert found["chosen_on"]["rows"] == 40
    assert "made anew" in done.err


def test_completions_have_no_classes(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    rows = [{"prompt": f"count to {i}:", "completion": f" {i}"} for i in range(12)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    assert call(*workshop.training(tmp_path / "run", train_file=train, test_file=train, max_steps=1)).code == 0
    refused = call("eval", tmp_path / "run", "--no_progress", "--coverage", "0.9")
    assert (refused.code, "completions have none" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--coverage", "0.9", "--target_accuracy", "0.9"], 1, "give --coverage or --target_accuracy, not both"),
        (["--coverage", "90"], 2, "coverage is 90: give a share in (0, 1]"),
        (["--prediction_sets", "most"], 2, "prediction_sets is 'most'; give a number"),
        (["--target_accuracy", "1", "--split", "test"], 1, "1 cannot be guaranteed"),
        (["--coverage", "0.9", "--sureness", "margin"], 2, "invalid choice: 'margin'"),
        (["--target_accuracy", "0.5", "--delta", "2"], 1, "delta is 2.0"),
    ],
)
def test_misuse(call: Call, graded: Path, words: list[str], code: int, message: str) -> None:
    refused = call("eval", graded, "--no_progress", *words)
    assert (refused.code, message in refused.err) == (code, True), refused.err


@pytest.mark.parametrize("words", [["--delta", "0.1"], ["--set_score", "aps"]])
def test_an_option_without_effect_warns(call: Call, graded: Path, words: list[str]) -> None:
    done = call("eval", graded, "--no_progress", "--resamples", 0, "--split", "test", "--coverage", "0.9", *words)
    assert (done.code, f"{words[0]} has no effect without" in done.err) == (0, True)


def test_nothing_asked_for_changes_nothing(call: Call, graded: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    assert call("eval", graded, "--no_progress", "--resamples", 0, "--split", "test", "--output_file", file).code == 0
    assert "selective" not in json.loads(file.read_text())
    assert math.isfinite(torch.tensor(read_run(graded).metrics["test"]["samples"]["nll"]))
