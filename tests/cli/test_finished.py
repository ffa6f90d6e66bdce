"""`varlora eval` and `varlora predict`: on the run's own rows, on others, and on rows without labels."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cli.workshop import Outcome, Workshop, reviews, write_rows
from varlora import Predictor
from varlora.metrics import evaluate
from varlora.posterior import PredictionConfig
from varlora.posterior.folder import write_posterior_files
from varlora.runs.config import RunConfig
from varlora.runs.data import load_new_rows
from varlora.runs.folder import read_run
from varlora.runs.predict import predict_answers
from varlora.runs.setting import reload_setting

Call = Callable[..., Outcome]


def answers(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_eval_repeats_the_runs_own_metrics_exactly(call: Call, run_folder: Path, tmp_path: Path) -> None:
    done = call("eval", run_folder, "--no_progress", "--output_file", tmp_path / "m.json")

    assert done.code == 0
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["metrics"] == json.loads((run_folder / "metrics.json").read_text())
    low, high = written["intervals"]["test"]["samples"]["nll"]
    assert low < written["metrics"]["test"]["samples"]["nll"] < high


def test_eval_by_the_linearised_model_too(call: Call, run_folder: Path, tmp_path: Path) -> None:
    words = ["eval", run_folder, "--no_progress", "--linearised", "--split", "test"]
    assert call(*words, "--output_file", tmp_path / "m.json").code == 0
    metrics = json.loads((tmp_path / "m.json").read_text())["metrics"]["test"]

    run = read_run(run_folder)
    how = PredictionConfig(mode="linearised", samples=run.config.samples)
    prediction = predict_answers(reload_setting(run), run.posterior, "test", how)
    expected = evaluate(prediction.log_probs, prediction.labels)
    assert metrics["linearised"]["nll"] == pytest.approx(expected["nll"], rel=1e-6)
    assert metrics["linearised"]["nll"] != metrics["samples"]["nll"]
    assert {name: metrics[name] for name in ("mean", "samples")} == run.metrics["test"]

    refused = call(*words, "--samples", 0)
    assert (refused.code, "--linearised needs the posterior's variance" in refused.err) == (1, True)


def test_eval_of_another_file(call: Call, run_folder: Path, workshop: Workshop, tmp_path: Path) -> None:
    words = ["eval", run_folder, "--no_progress", "--output_file", tmp_path / "m.json"]
    own = read_run(run_folder).metrics["test"]

    assert call(*words, "--test_file", workshop.folder / "test.jsonl").code == 0
    assert json.loads((tmp_path / "m.json").read_text())["metrics"] == {"test": own}

    refused = call(*words, "--split", "test")
    assert (refused.code, "--overwrite" in refused.err) == (1, True)
    assert call(*words, "--split", "test", "--samples", 0, "--overwrite").code == 0
    assert json.loads((tmp_path / "m.json").read_text())["metrics"] == {"test": {"mean": own["mean"]}}


def test_rows_of_another_file_are_worded_as_in_training(run_folder: Path, tmp_path: Path) -> None:
    """WinoGrande's choices fill a blank, and keep their case in this style."""
    run = read_run(run_folder)
    facts = {**run.facts, "task": {"name": "winogrande_s", "kind": "choice", "answers": ["A", "B"]}}
    run = dataclasses.replace(run, facts=facts)
    file = write_rows(tmp_path / "dev.jsonl", [{"question": "_ ran", "choices": ["the cat", "the dog"], "answer": 0}])

    for task, choices in {"winogrande_s": "A. the cat. B. the dog.", "openbookqa": "A. The cat. B. The dog."}.items():
        config = RunConfig(model_name_or_path="m", output_dir="o", task=task, prompt_style="laplace-lora")
        asked = dataclasses.replace(run, config=config)
        prompt = load_new_rows(str(file), asked, split="test", labelled=True).rows("test")[0]["prompt"]
        assert prompt.endswith(f"_ ran Choices: {choices} Answer:")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a film", "label": "neutral"}, "line 1, field 'label': got 'neutral'"),
        ({"question": "q", "choices": ["a", "b"], "answer": 0}, "of kind 'choice'; the task is of kind 'label'"),
        ({"passage": "p", "question": "q", "answer": True}, "of kind 'yes or no'"),
    ],
)
def test_eval_refuses_rows_of_another_task(
    call: Call, run_folder: Path, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    file = write_rows(tmp_path / "other.jsonl", [row])

    refused = call("eval", run_folder, "--test_file", file)

    assert (refused.code, message in refused.err) == (1, True)


def test_predict_rows_without_labels(call: Call, run_folder: Path, workshop: Workshop, tmp_path: Path) -> None:
    labelled = reviews(9, first=100)
    given = [{"text": row["text"], "id": 100 + n, "customer": {"name": f"c{n}"}} for n, row in enumerate(labelled)]
    bare = write_rows(tmp_path / "new.jsonl", given)
    target = tmp_path / "answers.jsonl"

    words = ["predict", run_folder, "--no_progress", "--samples", 4]
    done = call(*words, "--input_file", bare, "--output_file", target)

    assert (done.code, "9 rows answered by the average over 4 draws" in done.out) == (0, True)
    assert "One pass" not in done.out
    found = answers(target)
    own = read_run(run_folder).prediction("test", "samples")
    assert [{name: row[name] for name in given[0]} for row in found] == given, "an id keeps its type, no column is lost"
    assert list(found[0])[:4] == ["id", "text", "customer", "prediction"]
    assert "not read: customer" in done.err
    assert [row["prediction"] for row in found] == [own.classes[c] for c in own.probs.argmax(1).tolist()]
    assert [list(row["probabilities"].values()) for row in found] == own.probs.tolist()
    for row in found:
        assert row["confidence"] == max(row["probabilities"].values())
        assert 0 <= row["mutual_information"] <= row["predictive_entropy"]

    wrong = write_rows(
        tmp_path / "labelled.jsonl", [{**labelled[0], "label": "whatever"}, *labelled[1:-1], {**labelled[-1], "of": 9}]
    )
    table = tmp_path / "answers.parquet"
    words = [*words, "--input_file", wrong, "--output_file", table]
    assert call(*words).code == 0
    written = pq.read_table(table).to_pylist()
    assert [r["probabilities"] for r in written] == [r["probabilities"] for r in found]
    assert [r["of"] for r in written] == [None] * 8 + [9], "a column that only the last row has"
    assert [r["label"] for r in written] == ["whatever", *(row["label"] for row in labelled[1:])]

    before = table.read_bytes()
    refused = call(*words)
    assert (refused.code, "--overwrite" in refused.err) == (1, True)
    assert call(*words, "--samples", 0, "--overwrite").code == 0
    assert table.read_bytes() != before
    assert "mutual_information" not in pq.read_table(table).column_names
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "answers.jsonl",
        "answers.parquet",
        "labelled.jsonl",
        "new.jsonl",
    ]


def test_predict_draws_only_where_validation_rows_have_shown_that_it_helps(
    call: Call, run_folder: Path, tmp_path: Path
) -> None:
    """Of two labelled validation rows nothing can be said: the mean answers, and evaluation draws all the same."""
    bare = write_rows(tmp_path / "new.jsonl", [{"text": row["text"]} for row in reviews(9, first=100)])
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    words = ["predict", run, "--no_progress", "--input_file", bare, "--output_file", tmp_path / "a.jsonl"]

    done = call(*words)

    assert done.code == 0, done.err
    assert (
        "One pass, since nothing can be said of sampling: only 2 validation rows have a label, and it takes 20 "
        "(--samples 4: draws)." in done.out
    )
    assert "9 rows answered by the posterior's mean" in done.out
    assert "predicting with the point" not in done.err  # said once
    at_mean = read_run(run).prediction("test", "mean")
    assert [list(row["probabilities"].values()) for row in answers(tmp_path / "a.jsonl")] == at_mean.probs.tolist()

    q = read_run(run).posterior
    helped = {**(q.meta.diagnostics or {}), "sampling": {"helps": True, "why": ""}}
    write_posterior_files(dataclasses.replace(q, meta=dataclasses.replace(q.meta, diagnostics=helped)), run)  # type: ignore[type-var]
    done = call(*words, "--overwrite")
    assert done.code == 0, done.err
    assert ("the average over 4 draws" in done.out, "One pass" in done.out) == (True, False)


def test_predict_reads_a_pipe_and_refuses_what_it_would_write_over(
    call: Call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Piped:
        buffer = io.BytesIO(b'{"text": "a fine film"}\n')

    monkeypatch.setattr("sys.stdin", Piped)
    words = ["predict", run_folder, "--no_progress", "--output_file", tmp_path / "answers.jsonl", "--input_file"]

    assert call(*words, "-").code == 0
    assert [(row["id"], row["text"]) for row in answers(tmp_path / "answers.jsonl")] == [("input-00000", "a fine film")]
    twice = write_rows(tmp_path / "twice.jsonl", [{"text": "a"}, {"text": "b", "confidence": 1}])
    refused = call(*words, twice, "--overwrite")
    assert (refused.code, "twice.jsonl has the columns confidence, which `varlora predict`" in refused.err) == (1, True)


def test_predict_writes_lines_to_standard_output_and_nothing_else(
    call: Call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [{"id": n, "text": f"a fine film {n}", "colour": "rot"} for n in range(5)]
    rows = write_rows(tmp_path / "rows.jsonl", given)
    words = ["predict", run_folder, "--mode", "samples", "--samples", 4, "--input_file"]

    class Piped:
        buffer = io.BytesIO(rows.read_bytes())

    monkeypatch.setattr("sys.stdin", Piped)
    piped = call(*words, "-", "--output_file", "-")
    written = call(*words, rows, "--output_file", tmp_path / "answers.jsonl")

    assert (piped.code, written.code) == (0, 0)
    assert [json.loads(line) for line in piped.out.splitlines()] == answers(tmp_path / "answers.jsonl")
    assert "5 rows answered by the average over 4 draws; written to standard output." in piped.err
    assert "not read: colour" in piped.err
    assert "5 rows answered" in written.out
    refused = call(*words, rows, "--output_file", "-", "--mode", "mean")
    assert (refused.code, refused.out, "which has no draws" in refused.err) == (1, "", True)


@pytest.mark.parametrize("piped", [False, True])
def test_predict_reads_in_parts_and_refuses_a_file_before_it_predicts(
    call: Call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool
) -> None:
    rows = [{"id": n, "text": f"a fine film {n}"} for n in range(20)]
    good = write_rows(tmp_path / "good.jsonl", rows)
    twice = write_rows(tmp_path / "twice.jsonl", [*rows, {"id": 3, "text": "a film"}])
    words = ["predict", run_folder, "--no_progress", "--samples", 4, "--per_device_eval_batch_size", 1, "--output_file"]
    assert call(*words, tmp_path / "a.jsonl", "--input_file", good).code == 0
    assert [row["id"] for row in answers(tmp_path / "a.jsonl")] == list(range(20))

    predicted: list[int] = []
    real = Predictor.answers
    monkeypatch.setattr(Predictor, "answers", lambda own, part: predicted.append(len(part.rows)) or real(own, part))
    if piped:
        monkeypatch.setattr("sys.stdin", type("Piped", (), {"buffer": io.BytesIO(twice.read_bytes())}))
    refused = call(*words, tmp_path / "b.jsonl", "--input_file", "-" if piped else twice)

    assert (refused.code, "line 21, field 'id': got 3; allowed: an id of its own (line 4 has" in refused.err) == (
        1,
        True,
    )
    assert predicted == ([16] if piped else [])
    assert not (tmp_path / "b.jsonl").exists()


def test_choices_that_a_row_does_not_offer_get_no_probability(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    rows = [{"question": f"which one {i}?", "choices": ["cat", "dog", "cow"][: 2 + i % 2]} for i in range(12)]
    train = write_rows(tmp_path / "train.jsonl", [{**row, "answer": 1} for row in rows])
    new = write_rows(tmp_path / "new.jsonl", rows[:2])
    assert call(*workshop.training(tmp_path / "run", train_file=train, test_file=None, max_steps=1)).code == 0

    words = ["predict", tmp_path / "run", "--no_progress", "--output_file", tmp_path / "answers.jsonl"]
    assert call(*words, "--input_file", new).code == 0

    assert [list(row["probabilities"]) for row in answers(tmp_path / "answers.jsonl")] == [["A", "B"], ["A", "B", "C"]]
    many = write_rows(tmp_path / "many.jsonl", [{"question": "which?", "choices": ["a", "b", "c", "d"]}])
    refused = call(*words, "--input_file", many, "--overwrite")
    assert (refused.code, "at most 3, as many as in training" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("answers.csv", [{"text": "a"}], "must end in .jsonl or .parquet"),
        ("answers.jsonl", [], "is empty"),
        ("answers.jsonl", [{"txt": "a"}], "got columns ['txt']; allowed shapes: text; question/choices"),
        ("answers.jsonl", [{"text": " "}], "line 1, field 'text'"),
        ("answers.jsonl", [{"text": "fine " * 200}], "tokens, more than the 128 allowed"),
    ],
)
def test_predict_refuses(
    call: Call, run_folder: Path, tmp_path: Path, name: str, rows: list[dict[str, Any]], message: str
) -> None:
    file = write_rows(tmp_path / "new.jsonl", rows)

    refused = call("predict", run_folder, "--input_file", file, "--output_file", tmp_path / name)

    assert (refused.code, message) == (1, message if message in refused.err else refused.err)
    assert not (tmp_path / name).exists()


def test_a_folder_that_is_no_run(call: Call, tmp_path: Path) -> None:
    refused = call("eval", tmp_path)

    assert (refused.code, "holds no adapter and no posterior: it is empty" in refused.err) == (1, True)
