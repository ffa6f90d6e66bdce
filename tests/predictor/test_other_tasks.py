"""`varlora.Predictor` of choices, of texts, and of a linearised model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_runs import config, films, finish_herds, save_model, write_rows
from varlora import Predictor, TextAnswer
from varlora.runs.folder import read_run
from varlora.runs.run import run


def asked(n: int) -> dict[str, Any]:
    return {"question": f"which {('cat', 'dog', 'cow')[n % 3]}", "choices": ["fine", "dull", "film"][: 2 + n % 2]}


def finish(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), write_rows(folder / "rows.jsonl", rows))
    noisy = {"hess_init": 1e-2, "ess": 1e4, "variance": "hessian", "held_out": "none", "max_steps": 3, "samples": 4}
    settings = config(folder, save_model(folder / "model", layers=1), **{**files, **noisy, **options})
    run(settings, progress=False)
    return Path(settings.output_dir)


def test_a_choice_that_is_not_offered_has_no_probability(tmp_path: Path) -> None:
    folder = finish(tmp_path, [{**asked(n), "answer": 0} for n in range(6)])
    predictor = Predictor.from_pretrained(folder, samples=4)

    answers = predictor([asked(0), asked(1)])

    assert [list(answer.probabilities) for answer in answers] == [["A", "B"], ["A", "B", "C"]]
    probabilities = predictor.predict_proba([asked(0), asked(1)])
    assert probabilities[0, 2] == 0
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert predictor.kind == "choice"
    with pytest.raises(ValueError, match="is a text, and the task asks for more"):
        predictor("which cat")


def test_texts_whose_classes_are_no_and_yes_are_texts(tmp_path: Path) -> None:
    rows = [{"text": f"a {('dull', 'fine')[n % 2]} film", "label": ("no", "yes")[n % 2]} for n in range(6)]
    predictor = Predictor.from_pretrained(finish(tmp_path, rows), samples=4)

    assert predictor("a fine film").probabilities == predictor({"text": "a fine film"}).probabilities
    with pytest.raises(ValueError, match="holds records of passage/question/answer; those that the task was trained"):
        predictor({"passage": "a fine film", "question": "is it fine"})


def test_a_yes_or_no_question_is_more_than_a_text(tmp_path: Path) -> None:
    rows = [{"passage": f"a film {n}", "question": "is it fine", "answer": n % 2 == 0} for n in range(6)]
    predictor = Predictor.from_pretrained(finish(tmp_path, rows), samples=4)

    assert predictor({"passage": "a film", "question": "is it fine"}).label in ("no", "yes")
    with pytest.raises(ValueError, match="is a text, and the task asks for more"):
        predictor("a film")


def test_texts_are_answered_by_a_vote(tmp_path: Path) -> None:
    rows = [{"id": f"q{n}", "prompt": f"a film {n} Label:", "completion": " positive"} for n in range(6)]
    folder = finish(tmp_path, rows, final_answer="text", max_new_tokens=4)
    stored = read_run(folder).generations("test", "samples")
    predictor = Predictor.from_pretrained(folder, samples=4)

    answers = predictor(rows)

    assert all(isinstance(answer, TextAnswer) for answer in answers)
    assert [answer.id for answer in answers] == [row["id"] for row in rows]
    assert [answer.answer for answer in answers] == list(stored.majority)
    assert [answer.agreement for answer in answers] == stored.agreement.tolist()
    for n, answer in enumerate(answers):
        assert answer.text == stored.texts[n][stored.answers[n].index(answer.answer)]
        assert answer.answers[answer.answer] == answer.agreement
    assert predictor(rows[1]["prompt"]).text == answers[1].text
    assert [answer.text for answer in predictor(iter(row["prompt"] for row in rows))] == [a.text for a in answers]
    at_mean = Predictor.from_pretrained(folder, mode="mean", max_new_tokens=2)(rows[:1])[0]
    assert at_mean.agreement is None
    assert at_mean.to_dict()["answers"] == {at_mean.answer: 1.0}
    for refused in (predictor.predict_proba, predictor.prediction):
        with pytest.raises(ValueError, match="which have no probabilities of classes"):
            refused(rows)


def test_a_rows_linearised_numbers_do_not_depend_on_the_others(tmp_path: Path) -> None:
    folder = finish_herds(tmp_path, save_model(tmp_path / "model", layers=1), method="laplace", max_steps=8)
    predictor = Predictor.from_pretrained(folder, mode="linearised")
    texts = [row["text"] for row in films(5)]

    together = predictor(texts)

    assert (predictor.num_draws, predictor.prediction(texts).mode) == (100, "linearised")
    assert max(answer.mutual_information for answer in together) > 1e-3
    alone = [predictor(text) for text in texts]
    np.testing.assert_allclose(
        [list(a.probabilities.values()) for a in alone], [list(a.probabilities.values()) for a in together], atol=1e-6
    )
    stored = read_run(folder).prediction("test", "linearised")
    found = predictor.predict_proba(films(24, offset=3))
    np.testing.assert_allclose(found, stored.probs.numpy(), atol=0.1)  # other draws of the same logits
