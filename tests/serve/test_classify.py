"""Rows over HTTP: the predictor's answers, whoever else asks at the same time."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import served
from small_runs import herds
from varlora.posterior import PredictionConfig
from varlora.posterior.manifest import write_tuned
from varlora.predictor.predictor import Predictor
from varlora.runs.calibration import Calibration, ChosenOn
from varlora.runs.choose_decision import Wanted, choose_decision
from varlora.runs.folder import read_run
from varlora.serve import create_app
from varlora.serve.classifier import PredictorClassifier
from varlora.serve.facts import abstention
from varlora.serve.load import LoadOptions, load_models, named_folders

TEXTS = [row["text"] + " film" * (3 * n % 5) for n, row in enumerate(herds(24, offset=40))]


def numbers(answer: dict[str, Any]) -> list[float]:
    return [answer["entropy"], answer["mutual_information"], *answer["probabilities"].values()]


def asked(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/classify", json={"model": "herds", **body})
    assert response.status_code == 200, response.text
    answers: list[dict[str, Any]] = response.json()["answers"]
    return answers


def test_the_answers_are_the_predictors(client: httpx.Client, predictor: Predictor) -> None:
    expected = [answer.to_dict() for answer in predictor(TEXTS)]
    by_text = asked(client, texts=TEXTS)
    by_row = asked(client, rows=[{"id": f"r{n}", "text": text} for n, text in enumerate(TEXTS)])
    assert [answer["id"] for answer in by_text] == list(range(len(TEXTS)))
    assert [answer["id"] for answer in by_row] == [f"r{n}" for n in range(len(TEXTS))]
    for n, answer in enumerate(expected):
        for other in (by_text[n], by_row[n]):
            assert other["label"] == answer["label"]
            assert numbers(other) == pytest.approx(numbers(answer), abs=1e-6)
    assert max(answer["mutual_information"] for answer in by_text) > 1e-3


def test_an_answer_does_not_depend_on_its_neighbours(client: httpx.Client) -> None:
    alone = [asked(client, texts=[text])[0] for text in TEXTS]
    before = _batches(client)

    def ask(n: int) -> dict[str, Any]:
        return asked(client, texts=[TEXTS[n % len(TEXTS)]])[0]

    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(ask, range(72)))
    for n, answer in enumerate(together):
        assert numbers(answer) == pytest.approx(numbers(alone[n % len(TEXTS)]), abs=1e-6)
    assert _batches(client) - before < 72, "no two rows were ever computed together"


def test_two_runs_share_a_base_and_keep_their_answers(client: httpx.Client, other: Path) -> None:
    apart = Predictor.from_pretrained(other, samples=6)
    expected = apart(TEXTS[:4])
    for _ in range(2):  # in turn with the first run's
        found = client.post("/v1/classify", json={"model": "other", "texts": TEXTS[:4]}).json()["answers"]
        mine = asked(client, texts=TEXTS[:4])
        for one, answer, first in zip(found, expected, mine, strict=True):
            assert numbers(one) == pytest.approx(numbers(answer.to_dict()), abs=1e-6)
            assert numbers(one) != pytest.approx(numbers(first), abs=1e-4)


def test_the_base_is_loaded_once(trained: Path, other: Path, base: str) -> None:
    loaded = load_models({"bare": base, "a": str(trained), "b": str(other)}, LoadOptions(samples=2))
    assert list(loaded) == ["bare", "a", "b"]
    first, second = loaded["a"], loaded["b"]
    assert isinstance(first, Predictor)
    assert isinstance(second, Predictor)
    assert first.loaded.model is second.loaded.model
    assert loaded["bare"].model is first.loaded.model  # type: ignore[union-attr]
    assert first.loaded.adapter != second.loaded.adapter


def test_draws_are_the_parts_of_the_average(client: httpx.Client) -> None:
    for answer in asked(client, texts=TEXTS[:3], draws=True):
        assert len(answer["draws"]) == 6
        for at, probability in enumerate(answer["probabilities"].values()):
            assert sum(draw[at] for draw in answer["draws"]) / 6 == pytest.approx(probability, abs=1e-6)


def test_one_prediction_gives_answers_and_draws(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[Any] = []
    once = predictor._predict
    monkeypatch.setattr(predictor, "_predict", lambda records: asked_for.append(records) or once(records))
    answers = PredictorClassifier("herds", predictor).answer(TEXTS[:2], draws=True)
    assert [len(answer["draws"]) for answer in answers] == [6, 6]
    assert len(asked_for) == 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "herds", "texts": []}, 400, "0 entries"),
        ({"model": "herds"}, 400, "either texts"),
        ({"model": "herds", "texts": ["a"], "rows": [{"text": "a"}]}, 400, "either texts"),
        ({"model": "herds", "texts": ["a"] * 300}, 400, "300 entries; allowed: 1 to 256"),
        ({"model": "herds", "texts": ["film " * 500]}, 400, "2500 characters; allowed: 2000"),
        ({"model": "herds", "texts": ["film " * 390]}, 400, "tokens"),
        ({"model": "herds", "texts": ["  "]}, 400, "not empty"),
        ({"model": "herds", "texts": [3]}, 400, "texts.0"),
        ({"model": "herds", "rows": [{"text": "a", "path": "/etc/passwd"}]}, 400, "'path', which this model does not"),
        ({"model": "herds", "rows": [{"question": "a?", "choices": ["b", "c"]}]}, 400, "rows"),
        ({"model": "herds", "rows": [{"text": "a", "id": [1]}]}, 400, "the id of rows[0]"),
        ({"model": "herds", "texts": ["a"], "temperature": 1}, 400, "parameter 'temperature'; allowed: draws, "),
        ({"model": "herds", "text": "a"}, 400, "parameter 'text'; did you mean 'texts'? Allowed: draws, model, rows, "),
        ({"model": "nobody", "texts": ["a"]}, 404, "there is no model 'nobody'; there is herds, other"),
        ({"texts": ["a"]}, 400, "say which model: herds, other"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_reason(
    client: httpx.Client, body: Any, status: int, says: str
) -> None:
    response = client.post("/v1/classify", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert says in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 60_000,
        b'{"texts": ["\\ud800"], "model": "herds"}',
        b"\xff\xfe",
        b'{"\\ud800": 1, "texts": ["a"]}',
        b'{"texts": NaN}',
        b"[]",
        b"7",
    ],
)
def test_a_malformed_body_is_refused(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_models_say_what_they_do_and_what_abstaining_did(client: httpx.Client, trained: Path) -> None:
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    facts = cards["herds"]["varlora"]
    assert facts["classes"] == ["negative", "positive"]
    assert facts["num_draws"] == 6
    table = facts["abstention"]
    assert table["rows"] == 48
    assert table["answered"][0] == 1
    assert table["answered"][100] <= table["answered"][60] <= 1
    assert client.get("/v1/models/herds").json() == cards["herds"]
    assert str(trained) not in str(cards)


def test_what_abstaining_did_is_said_of_the_probabilities_that_are_served(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    stored = read_run(run).prediction("validation", "samples")

    def found(**config: Any) -> dict[str, Any] | None:
        write_tuned(run, PredictionConfig(**config), [{"op": "tune"}])
        return abstention(Predictor.from_pretrained(run, decision=None))

    confidence = stored.at_temperature(9.0).probs.amax(1)
    divided = found(samples=6, logit_temperature=9.0)
    assert divided is not None
    assert divided["answered"][60] == float((confidence >= 0.6).double().mean())
    assert divided["answered"] != found(samples=6)["answered"]  # type: ignore[index]
    assert found(samples=6, temperature=0.5) is found(samples=4) is found(samples=6, prune=0.5) is None


def test_a_text_is_never_a_file_or_a_template(client: httpx.Client, trained: Path) -> None:
    texts = [str(trained / "config.yaml"), "{{ 7 * 7 }} {% for a in b %}", "${jndi:ldap://x}", "__import__('os')"]
    for answer, text in zip(asked(client, texts=texts), texts, strict=True):
        assert answer["label"] in ("negative", "positive")
        assert numbers(answer) == pytest.approx(numbers(asked(client, texts=[text])[0]), abs=1e-6)


def test_names_of_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "a").mkdir(parents=True)
    first, second = str(tmp_path / "a"), str(tmp_path / "b" / "a")
    assert named_folders([first, f"second={second}"]) == {"a": first, "second": second}
    with pytest.raises(ValueError, match="both called 'a'"):
        named_folders([first, second])


def _batches(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return sum(int(float(x.split()[-1])) for x in lines if x.startswith('varlora_batch_rows_count{kind="rows"}'))


def test_the_folders_decision_is_followed_and_counted(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    stored = read_run(run).prediction("validation", "samples")
    calibration = Calibration(prediction=stored, chosen_on=ChosenOn(source="validation", rows=len(stored.labels)))
    choose_decision(Wanted(coverage=Fraction("0.5"), sets=Fraction("0.9")), calibration).save(run)
    decided = Predictor.from_pretrained(run, samples=6)
    models = load_models({"decided": str(run)}, LoadOptions(samples=6))
    with served(create_app(models)) as url, httpx.Client(base_url=url, timeout=30, verify=False) as client:
        answers = asked(client, model="decided", texts=TEXTS)
        metrics = client.get("/metrics").text
    for answer, expected in zip(answers, decided(TEXTS), strict=True):
        assert (answer["answered"], answer["reason"]) == (expected.answered, expected.reason)
        assert answer["prediction_set"] == list(expected.prediction_set)
    abstained = sum(not answer["answered"] for answer in answers)
    assert 0 < abstained < len(answers)
    assert f'varlora_rows_total{{model="decided",outcome="abstained"}} {float(abstained)}' in metrics
    left_aside = load_models({"a": str(run)}, LoadOptions(samples=6, undecided=True))["a"]
    assert isinstance(left_aside, Predictor)
    assert left_aside.decision is None
