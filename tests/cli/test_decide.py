"""`varlora decide`: chosen on a run's validation rows, kept in its folder, said and taken back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.workshop import TEST, VALIDATION, Outcome, reviews, write_rows
from varlora.posterior import PredictionConfig
from varlora.posterior.manifest import write_tuned
from varlora.predictor.predictor import Predictor
from varlora.runs.decision import Decision
from varlora.runs.folder import read_run

Call = Callable[..., Outcome]


def test_what_was_chosen_is_said_and_kept(call: Call, run: Path) -> None:
    words = ["--coverage", "0.8", "--prediction_sets", "0.9", "--samples", 4]
    done = call("decide", run, "--no_progress", *words)
    assert done.code == 0, done.err
    decision = Decision.load(run)
    assert decision is not None
    stored = read_run(run).prediction("validation", "samples")
    assert decision.threshold is not None
    confidence = stored.probs.max(1).values
    assert decision.threshold.value == pytest.approx(float(confidence.sort().values[11]))  # the 49th from above
    assert (decision.predicted_as.mode, decision.predicted_as.draws, decision.chosen_on.rows) == ("samples", 4, 60)
    decided = decision.decide(stored)
    assert decided.answered is not None
    assert int(decided.answered.sum()) == 49
    for said in (
        "At least 80 % of new rows like these 60 are answered",
        "At least 90 % of new rows like these 60 have the right answer in their set",
        "49 of 60",
        "decision.json",
    ):
        assert said in done.out
    again = call("decide", run)
    assert (again.code, "Chosen on 60 rows of validation, predicted by samples, 4 draw(s)" in again.out) == (0, True)
    assert "At least 80 % of new rows like these 60 are answered" in again.out

    assert call("decide", run, "--reset").code == 0
    assert Decision.load(run) is None
    refused = call("decide", run)
    assert (refused.code, "nothing was decided" in refused.err) == (1, True)
    refused = call("decide", run, "--reset")
    assert (refused.code, "there is nothing to take back" in refused.err) == (1, True)


def test_no_model_is_loaded_where_training_has_left_the_predictions(call: Call, run: Path) -> None:
    done = call("decide", run, "--coverage", "0.8", "--samples", 4, "--model_name_or_path", "nowhere")
    assert done.code == 0, done.err


def test_thresholds_by_a_column_of_the_rows(call: Call, run: Path, tmp_path: Path) -> None:
    rows = [{**row, "topic": "a" if n % 6 else "b"} for n, row in enumerate(VALIDATION)]
    rows[0] |= {"topic": None}
    config = (run / "config.yaml").read_text()
    old = next(line for line in config.splitlines() if line.startswith("validation_file:"))
    file = write_rows(tmp_path / "topics.jsonl", rows)
    (run / "config.yaml").write_text(config.replace(old, f"validation_file: {file}"))
    done = call("decide", run, "--no_progress", "--samples", 4, "--coverage", "0.9", "--group_column", "topic")
    assert done.code == 0, done.err
    decision = Decision.load(run)
    assert decision is not None
    assert decision.group_column == "topic"
    assert decision.group_rows == {"a": 50, "b": 9}
    assert set(decision.group_thresholds) == {"a", "b"}
    confidence = read_run(run).prediction("validation", "samples").probs.max(1).values
    of_b = torch.tensor([row["topic"] == "b" for row in rows])
    assert decision.group_thresholds["b"].value == pytest.approx(float(confidence[of_b].min()))

    others = [{**row, "topic": n // 40} for n, row in enumerate(reviews(45, first=600))]
    mine = write_rows(tmp_path / "mine.jsonl", others)
    words = ["--coverage", "0.9", "--group_column", "topic", "--calibration_file", mine]
    done = call("decide", run, "--no_progress", "--samples", 4, "--overwrite", *words)
    assert done.code == 0, done.err
    decision = Decision.load(run)
    assert decision is not None
    assert (decision.group_rows, set(decision.group_thresholds)) == ({"0": 40, "1": 5}, {"0"})
    assert decision.chosen_on.source == "mine.jsonl"
    for said in ("0 (40 rows)", "with no guarantee of their own, since their rows do not suffice: 1 (5)"):
        assert said in done.out

    test = write_rows(tmp_path / "test.jsonl", [{**row, "topic": n % 2} for n, row in enumerate(TEST)])
    measured = call("eval", run, "--no_progress", "--resamples", 0, "--test_file", test)
    assert (measured.code, "guarantees its rows" in measured.out) == (0, True), measured.err
    assert "0 (40 rows)" in measured.out
    without = call("eval", run, "--no_progress", "--resamples", 0, "--split", "test")
    assert (without.code, "is not measured" in without.err, "'topic' to group by" in without.err) == (0, True, True)

    words = ["--samples", 4, "--coverage", "0.9", "--group_column", "subject", "--overwrite"]
    refused = call("decide", run, "--no_progress", *words)
    assert (refused.code, "has no column 'subject' to group by; it has label, text, topic" in refused.err) == (1, True)


def test_test_rows_are_left_out(call: Call, run: Path, tmp_path: Path) -> None:
    config = (run / "config.yaml").read_text()
    old = next(line for line in config.splitlines() if line.startswith("test_file:"))
    file = write_rows(tmp_path / "test.jsonl", [*TEST, *VALIDATION[:12]])
    (run / "config.yaml").write_text(config.replace(old, f"test_file: {file}"))
    done = call("decide", run, "--coverage", "0.8", "--samples", 4, "--model_name_or_path", "nowhere")
    assert (done.code, "12 rows of validation are reported, too" in done.err) == (0, True), done.err
    decision = Decision.load(run)
    assert decision is not None
    assert (decision.chosen_on.rows, decision.chosen_on.left_out) == (48, 12)
    mine = write_rows(tmp_path / "mine.jsonl", TEST)
    words = ["--coverage", "0.8", "--samples", 4, "--calibration_file", mine, "--overwrite"]
    refused = call("decide", run, "--no_progress", *words)
    assert (refused.code, "there is no labelled row in mine.jsonl" in refused.err) == (1, True), refused.err


def test_what_is_only_measured_has_no_guarantee_to_be_approximate(call: Call, run: Path) -> None:
    write_tuned(run, PredictionConfig(mode="mean"), [{"op": "tune"}])
    costs = call("decide", run, "--no_progress", "--cost_wrong", 1, "--group_column", "label")
    assert "What these rows measure is approximate" in costs.out, costs.err
    assert "nothing is decided by 'label'" in costs.err
    decision = Decision.load(run)
    assert decision is not None
    assert decision.group_column is None
    coverage = call("decide", run, "--no_progress", "--coverage", "0.8", "--overwrite")
    assert "The guarantee is approximate" in coverage.out


def test_a_decision_that_was_made_before_tuning_is_refused(call: Call, run: Path) -> None:
    assert call("decide", run, "--coverage", "0.8").code == 0
    write_tuned(run, PredictionConfig(mode="mean", logit_temperature=2.0), [{"op": "tune"}])
    refused = call("decide", run)
    assert (refused.code, "was chosen for another posterior" in refused.err) == (1, True)
    assert call("decide", run, "--no_progress", "--coverage", "0.8", "--overwrite").code == 0
    assert call("decide", run).code == 0


def test_a_decision_is_for_weights_loaded_as_they_were(call: Call, run: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", reviews(2, first=900))
    answer = ["predict", run, "--no_progress", "--input_file", rows, "--output_file", "-"]
    decide = ["decide", run, "--no_progress", "--overwrite", "--coverage", "0.8"]
    for chosen, asked in (("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "auto")):
        assert call(*decide, "--dtype", chosen).code == 0
        refused = call(*answer, "--dtype", asked)
        said = f"frozen weights in {chosen}, and they are in {'float32' if asked == 'auto' else asked} here"
        assert (refused.code, said in refused.err) == (1, True), refused.err
        assert call(*answer, "--dtype", asked, "--undecided").code == 0
        assert "not measured" not in call("eval", run, "--no_progress", "--dtype", chosen).err
        assert said in call("eval", run, "--no_progress", "--dtype", asked).err
        with pytest.raises(ValueError, match="frozen weights in"):
            Predictor.from_pretrained(run, dtype=asked)
        assert Predictor.from_pretrained(run, dtype=chosen).decision is not None
    assert call(*decide).code == 0
    assert call(*answer, "--dtype", "float32").code == 0  # which is what "auto" was


def test_a_decision_is_replaced_only_if_asked(call: Call, run: Path) -> None:
    assert call("decide", run, "--coverage", "0.8").code == 0
    before = Decision.file(run).read_bytes()
    refused = call("decide", run, "--coverage", "0.5", "--model_name_or_path", "nowhere")
    assert (refused.code, Decision.file(run).read_bytes()) == (1, before)
    assert f"`varlora decide {run}` shows it. Replace it with --overwrite" in refused.err
    decision = Decision.load(run)
    assert decision is not None
    with pytest.raises(ValueError, match="holds a decision"):
        decision.save(run)
    assert call("decide", run, "--coverage", "0.5", "--overwrite").code == 0
    assert Decision.file(run).read_bytes() != before


def test_completions_have_no_classes(call: Call, run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    facts["task"]["kind"] = "completion"
    (run / "run.json").write_text(json.dumps(facts))
    shutil.rmtree(run / "predictions")
    refused = call("decide", run, "--coverage", "0.9")
    assert (refused.code, "completions have none" in refused.err) == (1, True)


def test_costs_are_chosen_by_class_and_said_beside_simpler_rules(call: Call, run: Path, tmp_path: Path) -> None:
    words = ["--samples", 4, "--cost_wrong", "negative=10", "1", "--cost_abstain", "0.4"]
    done = call("decide", run, *words)
    assert done.code == 0, done.err
    decision = Decision.load(run)
    assert decision is not None
    assert decision.costs is not None
    assert (decision.costs.wrong, decision.costs.abstain) == (((0, 10), (1, 0)), (0.4, 0.4))
    for rule in ("least expected cost", "always the cheapest answer", "always the likeliest answer", "never an answer"):
        assert rule in done.out
    assert f"{decision.cost_of_rules[0].measured:.4g}" in done.out
    file = tmp_path / "costs.json"
    file.write_text('{"wrong": {"negative": {"positive": 10}, "positive": 1}, "abstain": 0.4}')
    assert call("decide", run, "--samples", 4, "--cost_file", file, "--overwrite").code == 0
    again = Decision.load(run)
    assert again is not None
    assert again == decision
    assert "never an answer" in call("decide", run).out


def test_bands_are_said_with_what_they_measure_and_promise(call: Call, run: Path) -> None:
    done = call("decide", run, "--samples", 4, "--confidence_bands", "high=0.5", "low")
    assert done.code == 0, done.err
    assert "Least confidence" in done.out
    bands = ("sure=0.999", "fair=0.2", "low")
    done = call("decide", run, "--samples", 4, "--accuracy_bands", *bands, "--delta", 0.1, "--overwrite")
    assert done.code == 0, done.err
    for said in ("no rows can", "For 90 % of the draws of such 60 rows"):
        assert said in done.out
    decision = Decision.load(run)
    assert decision is not None
    assert [band.rows for band in decision.bands] == [0, 60, 0]


def test_recalibration_takes_half_of_the_rows(call: Call, run: Path) -> None:
    done = call("decide", run, "--samples", 4, "--coverage", 0.8, "--recalibrate", "auto")
    assert done.code == 0, done.err
    for said in ("cross-validated NLL", "All else was chosen on 30 other rows", "Chosen on 30 rows of validation"):
        assert said in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cost_wrong", "dull=1"], "there is no class 'dull'"),
        (["--cost_wrong", "negative=much"], "'much' is no number"),
        (["--cost_wrong", "negative=1", "negative=2"], "names a class twice"),
        (["--cost_wrong", "nan"], "a cost is nan"),
        (["--cost_abstain", "1", "--coverage", "0.9"], "--cost_abstain says what it costs not to answer"),
        (["--cost_wrong", "1", "--coverage", "0.9"], "rows are answered by one rule"),
        (["--confidence_bands", "high=0.9"], "write NAME=NUMBER for each band but the last"),
        (["--confidence_bands", "high=0.9", "low", "--accuracy_bands", "high=0.9", "low"], "not both"),
        (["--recalibrate", "auto"], "say what is to be decided"),
    ],
)
def test_misuse(call: Call, graded: Path, words: list[str], message: str) -> None:
    refused = call("decide", graded, "--samples", 4, *words)
    assert (refused.code, message in refused.err) == (1, True), refused.err
    assert Decision.load(graded) is None


def test_eval_measures_what_was_decided(call: Call, run: Path, tmp_path: Path) -> None:
    words = ["--cost_wrong", "negative=10", "1", "--cost_abstain", "0.4", "--prediction_sets", "0.9"]
    assert call("decide", run, "--samples", 4, *words).code == 0
    command = ["eval", run, "--no_progress", "--resamples", 0, "--split", "test", "--overwrite"]
    done = call(*command, "--output_file", tmp_path / "m.json")
    assert done.code == 0, done.err
    decision = Decision.load(run)
    assert decision is not None
    measured = decision.measure(read_run(run).prediction("test", "samples"))
    found = json.loads((tmp_path / "m.json").read_text())["selective"]["splits"]["test"]
    assert found == {"guarantee": "holds", **json.loads(json.dumps(measured))}
    assert f"{measured['costs']['mean']:.4g}" in done.out
    assert "a row" in done.out

    other = call(*command, "--samples", 2)
    assert (other.code, "is not measured: it is for rows predicted by samples, 4 draw(s)" in other.err) == (0, True)
    write_tuned(run, PredictionConfig(samples=4, logit_temperature=2.0), [{"op": "tune"}])
    stale = call(*command)
    assert (stale.code, "was chosen for another posterior" in stale.err) == (0, True)


def test_predict_goes_by_costs_and_bands_and_checks_the_rows(call: Call, run: Path, tmp_path: Path) -> None:
    words = ["--cost_wrong", "negative=10", "1", "--cost_abstain", "0.4", "--confidence_bands", "high=0.55", "low"]
    done = call("decide", run, "--samples", 4, *words, "--recalibrate", "venn_abers")
    assert done.code == 0, done.err
    bare = write_rows(tmp_path / "new.jsonl", [{"text": row["text"]} for row in TEST])
    command = ["predict", run, "--no_progress", "--samples", 4, "--input_file", bare, "--check_exchangeability"]
    done = call(*command, "--output_file", tmp_path / "a.jsonl")
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    decision = Decision.load(run)
    assert decision is not None
    decided = decision.decide(read_run(run).prediction("test", "samples"))
    assert decided.cheapest is not None
    assert decided.answered is not None
    assert [a["prediction"] for a in answers] == [("negative", "positive")[n] for n in decided.cheapest.tolist()]
    assert [a["answered"] for a in answers] == decided.answered.tolist()
    of_label = decided.probs.gather(1, decided.cheapest[:, None]).squeeze(1)
    assert [a["confidence"] for a in answers] == pytest.approx(of_label.tolist())
    assert [a["band"] for a in answers] == list(decided.bands or ())
    assert [a["expected_cost"] for a in answers] == pytest.approx(decided.expected_costs.tolist())  # type: ignore[union-attr]
    assert "Nothing in 45 rows speaks against their being drawn as the 30 were" in done.out
    assert f"{sum(decided.answered.tolist())} of them cost less to answer than to leave" in done.out

    held = json.loads((run / "decision.json").read_text())
    (run / "decision.json").write_text(json.dumps({**held, "reference": [0.999] * 60}))
    done = call(*command, 0.05, "--output_file", tmp_path / "b.jsonl")
    assert "These 45 rows are not drawn as the 60 were that the decision is from" in done.out
    assert "a false alarm has a chance of at most 5 %" in done.out
    assert call("decide", run, "--reset").code == 0
    refused = call(*command, "--output_file", tmp_path / "c.jsonl")
    assert (refused.code, "`varlora decide` first" in refused.err) == (1, True)


def test_predict_goes_by_what_was_decided_unless_told_not_to(call: Call, run: Path, tmp_path: Path) -> None:
    assert call("decide", run, "--coverage", "0.8", "--prediction_sets", "0.9", "--samples", 4).code == 0
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"a film {n}"} for n in range(9)])
    words = ["predict", run, "--no_progress", "--input_file", rows, "--output_file", "-", "--samples"]

    done = call(*words, 4)

    assert done.code == 0, done.err
    found = [json.loads(line) for line in done.out.splitlines()]
    decision = Decision.load(run)
    assert decision is not None
    assert decision.threshold is not None
    assert [row["answered"] for row in found] == [row["confidence"] >= decision.threshold.value for row in found]
    assert all(set(row["set"]) <= set(row["probabilities"]) for row in found)
    assert "of them sure enough (`answered` in the file)" in done.err
    free = call(*words, 2, "--undecided")
    assert (free.code, "answered" in json.loads(free.out.splitlines()[0])) == (0, False)
    refused = call(*words, 2)
    assert (refused.code, refused.out) == (1, "")
    assert "predicted by samples, 4 draw(s)" in refused.err
    assert "--undecided" in refused.err
