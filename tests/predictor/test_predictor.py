"""`varlora.Predictor`: one object that answers, asked in every way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from small_runs import films, herds
from varlora import Answer, Predictor
from varlora.metrics import mutual_information, predictive_entropy
from varlora.runs.folder import read_run

TEXTS = [row["text"] for row in herds(7, offset=40)]
UNEVEN = [text + " film" * (3 * n % 5) for n, text in enumerate(TEXTS)]


def numbers(answer: Answer) -> list[float]:
    assert answer.mutual_information is not None
    return [answer.entropy, answer.mutual_information, *answer.probabilities.values()]


def test_rows_one_by_one_are_rows_together_are_a_stream(predictor: Predictor) -> None:
    together = predictor(UNEVEN)
    assert [answer.id for answer in together] == [f"input-{n:05d}" for n in range(len(UNEVEN))]
    assert max(answer.mutual_information for answer in together) > 1e-3, "draws must differ for this to show anything"
    alone = [predictor(text) for text in UNEVEN]
    np.testing.assert_allclose([numbers(a) for a in alone], [numbers(a) for a in together], rtol=0, atol=1e-6)
    again = predictor(UNEVEN)
    assert again == together
    as_records = predictor([{"id": n, "text": text, "colour": "red"} for n, text in enumerate(UNEVEN)])
    assert [answer.id for answer in as_records] == [str(n) for n in range(len(UNEVEN))]
    for others in (as_records, list(predictor(iter(UNEVEN))), predictor(tuple(UNEVEN))):
        np.testing.assert_allclose([numbers(a) for a in others], [numbers(a) for a in together], rtol=0, atol=1e-6)


def test_it_says_what_was_written_when_the_run_was_trained(trained: Path, predictor: Predictor) -> None:
    rows = datasets.Dataset.from_list(films(24, offset=3))
    stored = read_run(trained).prediction("test", "samples")
    answers = predictor(rows)
    assert [answer.id for answer in answers] == list(stored.ids)
    found = [[answer.probabilities[name] for name in stored.classes] for answer in answers]
    np.testing.assert_allclose(found, stored.probs.numpy(), atol=1e-6)
    np.testing.assert_allclose([a.entropy for a in answers], predictive_entropy(stored.log_probs).numpy(), atol=1e-6)
    np.testing.assert_allclose(
        [a.mutual_information for a in answers], mutual_information(stored.log_probs).numpy(), atol=1e-6
    )
    assert [a.probability for a in answers] == [max(a.probabilities.values()) for a in answers]
    assert all(a.probabilities[a.label] == a.probability for a in answers)
    assert {(a.answered, a.reason, a.prediction_set) for a in answers} == {(None, None, None)}

    prediction = predictor.prediction(rows, labelled=True)
    assert (prediction.mode, prediction.antithetic, prediction.seed) == ("samples", stored.antithetic, stored.seed)
    torch.testing.assert_close(prediction.log_probs, stored.log_probs, atol=1e-6, rtol=0)
    assert torch.equal(prediction.labels, stored.labels)
    assert set(predictor.prediction(rows).labels.tolist()) == {-100}


def test_a_stream_is_read_a_few_batches_at_a_time(predictor: Predictor) -> None:
    read = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal read
        for row in herds(128):
            read += 1
            yield row

    answers = predictor(rows())
    assert read == 0
    first = next(answers)
    assert (first.id, read) == ("herd-0", 48)  # 16 batches of 3
    assert [answer.id for answer in answers] == [f"herd-{n}" for n in range(1, 128)]

    broken = predictor(iter([*UNEVEN * 9, "", "a film"]))
    with pytest.raises(ValueError, match="rows, row 64, field 'text': got ''"):
        list(broken)


def test_arrays_and_tables_are_rows(predictor: Predictor) -> None:
    expected = predictor(TEXTS)
    for rows in (
        np.array(TEXTS),
        np.array(TEXTS, dtype=object)[:, None],
        pd.DataFrame({"text": TEXTS}),
        pd.Series(TEXTS),
        datasets.Dataset.from_dict({"text": TEXTS}),
    ):
        assert predictor(rows) == expected
    probabilities = predictor.predict_proba(TEXTS)
    assert (probabilities.shape, probabilities.dtype) == ((7, 2), np.float64)
    assert probabilities.tolist() == [list(answer.probabilities.values()) for answer in expected]
    assert predictor.predict(TEXTS).tolist() == [answer.label for answer in expected]
    assert predictor.classes_.tolist() == list(predictor.classes) == ["negative", "positive"]
    assert predictor([]) == []
    assert predictor.predict_proba([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1], "rows, row 1 is a int; give a text, or a record"),
        (7, "the rows are a int; give a text"),
        (b"a film", "the rows are a bytes; give a text"),
        (
            [{"text": "a film"}, "cut \ud83e"],
            r"rows, row 2, field 'text': got 'cut \\ud83e'; allowed: whole characters",
        ),
        (["a film", {"sentence": "a film"}], "rows, row 2: got columns"),
        (np.zeros((2, 2)), r"an array of shape \(2, 2\)"),
        ({"text": " "}, "rows, row 1, field 'text': got ' '"),
        ([{"id": 1, "text": "a"}, {"id": 1, "text": "b"}], "an id of its own"),
        (datasets.DatasetDict({"test": datasets.Dataset.from_list(films(2))}), "give one of its splits: test"),
    ],
)
def test_rows_that_do_not_fit_are_refused(predictor: Predictor, rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(rows)


def test_a_prediction_is_of_one_row_or_more(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="there are no rows"):
        predictor.prediction([])


def test_the_way_to_predict_is_chosen_like_that_of_varlora_predict(trained: Path) -> None:
    by_default = Predictor.from_pretrained(trained)
    helps = read_run(trained).posterior.meta.diagnostics["sampling"]["helps"]
    assert by_default.config.mode == ("samples" if helps else "mean")
    at_mean = Predictor.from_pretrained(trained, mode="mean", batch_size=2)
    stored = read_run(trained).prediction("test", "mean")
    answers = at_mean(films(24, offset=3))
    np.testing.assert_allclose([a.probability for a in answers], stored.probs.max(1).values.numpy(), atol=1e-6)
    assert {answer.mutual_information for answer in answers} == {None}
    assert at_mean.num_draws == 1
    for options, message in (
        ({"mode": "mean", "samples": 3}, "which has no draws"),
        ({"mode": "mean", "samples": "auto"}, "samples asks for draws, and mode is 'mean'"),
        ({"mode": "samples", "samples": 0}, "which is the mean"),
        ({"base_model": str(trained / "nowhere")}, "there is no model folder"),
        ({"base_model": "owner/nothing"}, "model_name_or_path is 'owner/nothing', and nothing can be loaded"),
        ({"samples": "8"}, "samples is '8'; give a number of draws"),
    ):
        with pytest.raises(ValueError, match=message):
            Predictor.from_pretrained(trained, **options)


def test_a_column_that_is_not_read_is_told_once(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictor = Predictor.from_pretrained(trained, samples=0)
    for _ in range(3):
        predictor({"text": "a fine film", "colour": "red"})
    told = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert told == ["jsonl: not read: colour; of a row the model sees text alone"]


def test_calls_from_several_threads_do_not_mix(predictor: Predictor) -> None:
    expected = predictor(UNEVEN)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(predictor, [UNEVEN] * 4)) == [expected] * 4


def test_draws_that_are_too_many_to_hold_are_drawn_anew(
    trained: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varlora.predictor.held_draws.HELD_BYTES", 0)
    drawn = Predictor.from_pretrained(trained, samples=6)
    assert [numbers(a) for a in drawn(UNEVEN)] == [numbers(a) for a in predictor(UNEVEN)]


def test_answers_are_plain_json(predictor: Predictor) -> None:
    answer = predictor("a fine cat film")
    plain = json.loads(json.dumps(answer.to_dict()))
    assert plain["label"] == answer.label
    assert Answer(**plain) == answer


def test_each_row_takes_as_many_draws_as_it_needs(trained: Path) -> None:
    until_sure = Predictor.from_pretrained(trained, samples="auto")
    found = until_sure.prediction(UNEVEN)
    every = Predictor.from_pretrained(trained, samples=16).prediction(UNEVEN)
    assert found.draws_taken is not None
    assert set(found.draws_taken.tolist()) <= {4, 8, 16}
    assert [answer.draws_taken for answer in until_sure(UNEVEN)] == found.draws_taken.tolist()
    for n, number in enumerate(found.draws_taken.tolist()):
        torch.testing.assert_close(found.log_probs[n, :number], every.log_probs[n, :number], atol=1e-5, rtol=1e-5)
