"""The commands on folders that `varlora train` has not written: a Trainer's, `save_posterior`'s, PEFT's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.workshop import Outcome
from small_runs import films, herds, write_rows
from trainer_folders import TrainerFolders, predict_by_hand
from varlora import Predictor, evaluate
from varlora.posterior.folder import load_posterior
from varlora.prediction.prediction import Prediction

Call = Callable[..., Outcome]
TOLD = ("--answers", "negative,positive", "--prompt_style", "varlora")


def measured(call: Call, folder: Path, folders: TrainerFolders, target: Path, *words: object) -> dict[str, Any]:
    done = call("eval", folder, "--test_file", folders.test, "--no_progress", "--output_file", target, *words)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(target.read_text())["metrics"]["test"]
    return found


def numbers(prediction: Prediction) -> dict[str, float]:
    return pytest.approx(evaluate(prediction.log_probs, prediction.labels), abs=1e-6)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["saved", "posterior", "checkpoint"])
def test_eval_gives_the_python_apis_numbers_without_an_option(
    call: Call, folders: TrainerFolders, tmp_path: Path, kind: str
) -> None:
    folder = getattr(folders, kind)
    q = load_posterior(folder)

    found = measured(call, folder, folders, tmp_path / "m.json")

    assert found["samples"] == numbers(predict_by_hand(folders, folder, q, 10))
    assert found["mean"] == numbers(predict_by_hand(folders, folder, q, 0))


def test_a_plain_adapter_is_measured_once_told_what_it_is_asked(
    call: Call, folders: TrainerFolders, tmp_path: Path
) -> None:
    words = ["eval", folders.plain, "--test_file", folders.test, "--no_progress"]
    for given, message in (([], "--answers a,b,c"), (TOLD[:2], "--prompt_style varlora")):
        refused = call(*words, *given)
        assert (refused.code, message in refused.err) == (1, True), refused.err
    twice = call(*words, *TOLD, "--label_names_file", "names.json")
    assert (twice.code, "not both" in twice.err) == (1, True)

    found = measured(call, folders.plain, folders, tmp_path / "m.json", *TOLD)

    assert found == {"mean": numbers(predict_by_hand(folders, folders.plain, None, 0, cut=False))}


def test_predict_and_the_predictor_answer_alike(call: Call, folders: TrainerFolders, tmp_path: Path) -> None:
    new = write_rows(tmp_path / "new.jsonl", [{"text": row["text"]} for row in films(4)])
    words = ["predict", folders.saved, "--input_file", new, "--no_progress", "--output_file", tmp_path / "a.jsonl"]
    done = call(*words, "--samples", 4)

    assert done.code == 0, done.err
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    answers = Predictor.from_pretrained(folders.saved, samples=4)([row["text"] for row in films(4)])
    assert [row["probabilities"] for row in written] == [
        pytest.approx(dict(answer.probabilities), abs=1e-6) for answer in answers
    ]
    plain = Predictor.from_pretrained(folders.plain, answers=["negative", "positive"], prompt_style="varlora")
    assert (plain.classes, plain("a fine film").mutual_information) == (("negative", "positive"), None)

    until_sure = call(*words, "--samples", "auto", "--overwrite")
    assert until_sure.code == 0, until_sure.err
    taken = {json.loads(line)["draws_taken"] for line in (tmp_path / "a.jsonl").read_text().splitlines()}
    assert taken <= {4, 8, 16}
    assert "draws_taken" not in written[0]
    refused = call(*words, "--samples", "auto", "--overwrite", "--coverage", 0.8)
    assert (refused.code, "--samples auto takes as many draws" in refused.err) == (1, True), refused.err


def test_what_rows_of_its_own_are_needed_for_names_the_file(
    call: Call, folders: TrainerFolders, tmp_path: Path
) -> None:
    for words, option in (
        (["eval", folders.saved], "--test_file FILE"),
        (["tune", folders.saved], "--validation_file FILE"),
        (["decide", folders.saved, "--coverage", 0.9], "--calibration_file FILE"),
        (["eval", folders.saved, "--test_file", folders.test, "--coverage", 0.9], "--calibration_file"),
        (["report", folders.saved], f"varlora eval {folders.saved} --test_file FILE"),
        (["report", folders.checkpoint.parent], f"varlora eval {folders.checkpoint} --test_file FILE"),
    ):
        refused = call(*words)
        assert (refused.code, option in refused.err) == (1, True), refused.err
    rows = write_rows(tmp_path / "herds.jsonl", herds(40))
    done = call("eval", folders.saved, "--test_file", folders.test, "--coverage", 0.9, "--calibration_file", rows)
    assert (done.code, "Answered" in done.out) == (0, True), done.err


def test_tuning_writes_into_a_posteriors_folder(call: Call, folders: TrainerFolders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders.saved, tmp_path / "saved"))
    rows = write_rows(tmp_path / "herds.jsonl", herds(40))

    done = call("tune", folder, "--validation_file", rows, "--samples", 2, "--fractions", 0, "--no_progress")

    assert done.code == 0, done.err
    tuned = json.loads((folder / "tune.json").read_text())
    assert (tuned["rows"], tuned["split"]) == (40, "validation")
    assert (load_posterior(folder).meta.tuned is None) is (tuned["tuned"] is None)
    measured(call, folder, folders, tmp_path / "m.json")


def test_tuning_leaves_checkpoints_and_plain_adapters_alone(
    call: Call, folders: TrainerFolders, tmp_path: Path
) -> None:
    """The new folder says all that was said of the old one, so that it needs no option."""
    rows = write_rows(tmp_path / "herds.jsonl", herds(40))
    words = ["--validation_file", rows, "--fractions", 0, "--temperatures", 1, 4, "--samples", 2, "--no_progress"]
    for folder, given, message in (
        (folders.checkpoint, (), "is a Trainer's checkpoint"),
        (folders.bare, (), "is a Trainer's checkpoint"),
        (folders.plain, TOLD, "has no posterior.json"),
    ):
        before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
        refused = call("tune", folder, *given, *words)
        assert (refused.code, message in refused.err, "--output_dir" in refused.err) == (1, True, True), refused.err
        new = tmp_path / f"{folder.parent.name}-{folder.name}"
        done = call("tune", folder, *given, *words, "--output_dir", new)
        assert done.code == 0, done.err
        assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before

        ours = measured(call, new, folders, tmp_path / "new.json", "--untuned", "--overwrite")
        assert ours == measured(call, folder, folders, tmp_path / "old.json", *given, "--untuned", "--overwrite")


def test_operations_and_health_take_them_as_they_are(call: Call, folders: TrainerFolders, tmp_path: Path) -> None:
    for n, folder in enumerate((folders.saved, folders.bare, folders.plain)):
        pruned = call("prune", folder, "--fraction", 0.1, "--by", "magnitude", "--output_dir", tmp_path / str(n))
        assert pruned.code == 0, pruned.err
        health = call("health", folder)
        assert (health.code, "--validation_file" in health.out or folder == folders.plain) == (0, True), health.err
    measured(call, tmp_path / "0", folders, tmp_path / "m.json")  # it knows what it was made of


@pytest.mark.parametrize("words", [["eval"], ["decide", "--coverage", ".9"], ["tune"], ["serve"]])
def test_a_folder_without_weights_is_told_before_any_rows_are_asked_for(
    call: Call, tmp_path: Path, words: list[str]
) -> None:
    refused = call(words[0], tmp_path, *words[1:])
    assert refused.code == 1
    assert "it is empty. Give the output_dir of a finished `varlora train`" in " ".join(refused.err.split())
