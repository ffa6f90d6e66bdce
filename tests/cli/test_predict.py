"""`varlora train`, `eval` and `predict` of texts behind prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cli.workshop import Outcome, Workshop, reviews, write_rows
from varlora.runs.folder import read_run

Call = Callable[..., Outcome]


def questions(count: int) -> list[dict[str, Any]]:
    return [{"id": f"q{i}", "prompt": f"a film {i} Label:", "completion": " positive"} for i in range(count)]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The words of a training whose texts are written by noisy draws, and its folder."""
    folder = tmp_path_factory.mktemp("texts")
    file = write_rows(folder / "rows.jsonl", questions(10))
    options: dict[str, Any] = {
        "train_file": file,
        "test_file": file,
        "final_answer": "text",
        "max_new_tokens": 5,
        "max_steps": 3,
        "samples": 6,
        "held_out": "none",
        "hess_init": 1e-2,
        "ess": 1e4,
        "variance": "hessian",
    }
    return folder / "run", workshop.training(folder / "run", **options)


def test_texts_are_written_measured_and_asked_for(call: Call, trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    run, words = trained
    done = call(*words)
    assert (done.code, done.err) == (0, done.err)
    assert "Exact match % ↑" in done.out
    assert "Agreement %" in done.out
    assert "varlora predict" in done.out

    again = call("eval", run, "--no_progress", "--output_file", tmp_path / "m.json", "--resamples", 100)
    assert (again.code, again.err) == (0, again.err)
    measured = json.loads((tmp_path / "m.json").read_text())
    assert measured["metrics"] == json.loads((run / "metrics.json").read_text())
    interval = measured["intervals"]["test"]["samples"]["agreement"]
    assert interval[0] <= measured["metrics"]["test"]["samples"]["agreement"] <= interval[1]
    other = write_rows(tmp_path / "other.jsonl", questions(3))
    fewer = ("--samples", 2, "--max_new_tokens", 2, "--resamples", 0, "--output_file", tmp_path / "n.json")
    shorter = call("eval", run, "--no_progress", "--test_file", other, *fewer)
    assert (shorter.code, shorter.err) == (0, shorter.err)
    assert json.loads((tmp_path / "n.json").read_text())["metrics"]["test"]["mean"]["tokens_per_text"] <= 2

    bare = write_rows(tmp_path / "bare.jsonl", [{"id": q["id"], "prompt": q["prompt"]} for q in questions(10)])
    asked = call(
        *("predict", run, "--no_progress", "--samples", 6, "--input_file", bare),
        *("--output_file", tmp_path / "texts.jsonl"),
    )
    assert (asked.code, "the majority over 6 draws" in asked.out) == (0, True)
    own = read_run(run).generations("test", "samples")
    records = lines(tmp_path / "texts.jsonl")
    assert len({record["agreement"] for record in records}) > 1, "draws must disagree for this to show anything"
    for record, answers, texts, name in zip(records, own.answers, own.texts, own.ids, strict=True):
        votes = Counter(answers)
        assert record["id"] == name
        assert votes[record["prediction"]] == max(votes.values())
        assert record["agreement"] == pytest.approx(max(votes.values()) / 6)
        assert {one["answer"]: one["share"] for one in record["answers"]} == pytest.approx(
            {answer: count / 6 for answer, count in votes.items() if answer is not None}
        )
        assert record["text"] == texts[answers.index(record["prediction"])]
    assert [r["log_likelihood_per_token"] for r in records] == pytest.approx(own.log_likelihood_per_token.tolist())

    at_mean = call(
        *("predict", run, "--no_progress", "--samples", 0, "--input_file", bare),
        *("--output_file", tmp_path / "mean.parquet"),
    )
    assert (at_mean.code, "the posterior's mean" in at_mean.out) == (0, True)
    table = pq.read_table(tmp_path / "mean.parquet").to_pylist()
    assert [row["text"] for row in table] == [row[0] for row in read_run(run).generations("test", "mean").texts]
    assert table[0].keys() == {"id", "prompt", "prediction", "text", "log_likelihood_per_token", "finished"}


def test_predict_writes_where_training_did_not(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "free.jsonl", questions(10))
    assert call(*workshop.training(tmp_path / "run", train_file=file, test_file=None, max_steps=1)).code == 0

    words = ["predict", tmp_path / "run", "--no_progress", "--input_file", file, "--output_file", tmp_path / "o.jsonl"]
    refused = call(*words)
    assert (refused.code, "max_new_tokens is 256" in refused.err) == (1, True)
    done = call(*words, "--max_new_tokens", 4)
    assert (done.code, done.err) == (0, done.err)
    assert "One pass, since nothing can be said of sampling: only" in done.out
    assert [set(row) for row in lines(tmp_path / "o.jsonl")] == [
        {"id", "prompt", "completion", "prediction", "text", "log_likelihood_per_token", "finished"}
    ] * 10
    done = call(*words, "--max_new_tokens", 4, "--samples", 10, "--overwrite")
    assert (done.code, "One pass" in done.out) == (0, False)
    assert [set(row) for row in lines(tmp_path / "o.jsonl")] == [
        {
            "id",
            "prompt",
            "completion",
            "prediction",
            "agreement",
            "answers",
            "text",
            "log_likelihood_per_token",
            "finished",
        }
    ] * 10
    labels = write_rows(tmp_path / "labels.jsonl", [{"text": "a film"}])
    refused = call(*words[:3], "--input_file", labels, "--output_file", tmp_path / "p.jsonl")
    assert (refused.code, "allowed: prompt, or messages" in refused.err) == (1, True)


def test_what_a_killed_prediction_left_is_said(call: Call, run: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", reviews(2, first=900))
    left = tmp_path / ".answers.jsonl.new-0123abcd"
    asked = ["predict", run, "--no_progress", "--input_file", rows, "--output_file", tmp_path / "answers.jsonl"]
    left.write_text("{", encoding="utf-8")
    done = call(*asked)
    assert (done.code, f"an interrupted prediction left {left}" in done.err.replace("\n", " ")) == (0, True), done.err
    assert left.exists()  # it may be another process's, at work
    left.unlink()
    assert "interrupted" not in call(*asked, "--overwrite").err
