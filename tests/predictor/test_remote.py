"""A predictor whose adapters a server holds says what the posterior says here, or why it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import varlora.predictor.client
from openai_server import Behaviour, serving
from small_runs import finish_herds, herds, save_model, write_rows
from varlora import Backend, Export, Predictor, export_adapters
from varlora.cli import main
from varlora.predictor.remote import RemotePredictor
from varlora.runs.folder import read_run
from varlora.tasks.rows import Records

TEXTS = [row["text"] for row in herds(7, offset=40)]
NOISY = {"hess_init": 1e-2, "ess": 1e4, "variance": "hessian", "max_steps": 12, "samples": 6}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose draws differ."""
    folder = tmp_path_factory.mktemp("trained")
    model = save_model(folder / "model", layers=1)
    return finish_herds(folder, model, per_device_eval_batch_size=3, temperature_scaling=True, **NOISY)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "herds"
    run = read_run(trained)
    export_adapters(run.posterior, folder, samples=3, seed=run.config.seed, source=trained)
    return folder


@pytest.fixture(scope="module")
def here(trained: Path) -> Predictor:
    """The posterior itself."""
    return Predictor.from_pretrained(trained, samples=3)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlora.predictor.client.time, "sleep", lambda seconds: None)


def served(folder: Path, **behaviour: Any) -> tuple[Behaviour, AbstractContextManager[str]]:
    export, how = Export.load(folder), Behaviour(**behaviour)
    return how, serving(export.base_model, folder, [adapter.name for adapter in export.adapters], how)


def answers(predictor: Predictor) -> np.ndarray:
    return predictor.prediction(TEXTS).log_probs.numpy()


def test_the_adapters_of_a_server_say_what_the_posterior_says(here: Predictor, exported: Path) -> None:
    behaviour, server = served(exported)
    with server as url:
        there = Predictor.from_pretrained(exported, backend=Backend(url=url, concurrency=2))
        assert isinstance(there, RemotePredictor)
        np.testing.assert_allclose(answers(there), answers(here), atol=1e-5)
        np.testing.assert_allclose(there.predict_proba(TEXTS), here.predict_proba(TEXTS), atol=1e-5)
        assert [answer.label for answer in there(iter(TEXTS))] == [answer.label for answer in here(TEXTS)]
        asked = len(behaviour.asked)
        there.check(Records(where="rows", rows=[{"text": TEXTS[0]}], labelled=False))
        with pytest.raises(ValueError, match="field 'text': got 3"):
            there.check(Records(where="rows", rows=[{"text": 3}], labelled=False))
        assert len(behaviour.asked) == asked
    with pytest.raises(ValueError, match="the model is at http"):
        there.loaded  # noqa: B018
    assert there.num_draws == 3
    assert behaviour.at_once <= 2
    assert {len(body["prompt"]) for body in behaviour.asked} == {3, 1}
    prediction = here.prediction(TEXTS)
    assert prediction.logit_temperature != 1
    assert np.ptp(prediction.log_probs.exp().numpy(), axis=1).max() > 1e-3, "draws must differ"


def test_an_export_answers_here_as_well(here: Predictor, exported: Path, tmp_path: Path) -> None:
    local = Predictor.from_pretrained(exported, samples=8)
    assert local.config.samples == local.num_draws == 3
    np.testing.assert_allclose(answers(local), answers(here), atol=1e-6)
    for wrong, said in (
        ({"kind": "choice"}, "was trained with 'label'"),
        ({"sampels": 3}, "unknown setting 'sampels'"),
    ):
        with pytest.raises(ValueError, match=said):
            Predictor.from_pretrained(exported, **wrong)
    weights = next(exported.glob("*-draw01-*")) / "adapter_model.safetensors"
    data = weights.read_bytes()
    try:
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"draw01.* was changed after it was exported"):
            Predictor.from_pretrained(exported)
    finally:
        weights.write_bytes(data)


def test_an_export_keeps_its_temperature_and_knows_its_base_model(
    trained: Path, exported: Path, tmp_path: Path
) -> None:
    one = export_adapters(read_run(trained).posterior, tmp_path / "one", samples=1, source=trained)
    assert Predictor.from_pretrained(tmp_path / "one").prediction(TEXTS).logit_temperature == one.logit_temperature != 1

    for asked in ({"samples": 0}, {"mode": "mean"}):
        with pytest.raises(ValueError, match="holds draws, and no mean"):
            Predictor.from_pretrained(exported, **asked)  # type: ignore[arg-type]

    other = Path(shutil.copytree(one.base_model, tmp_path / "other"))
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="this is not the base model that the posterior was trained on"):
        Predictor.from_pretrained(exported, base_model=str(other))


@pytest.mark.parametrize("behaviour", [{"knows_ids": False}, {"knows_ids": False, "refuses_ids": True}])
def test_an_older_server_names_the_likeliest_tokens_by_text(
    here: Predictor, exported: Path, behaviour: dict[str, Any]
) -> None:
    how, server = served(exported, **behaviour)
    with server as url:
        there = Predictor.from_pretrained(exported, backend=Backend(url=url, top_logprobs=1000))
        np.testing.assert_allclose(answers(there), answers(here), atol=1e-5)
        asked = len(how.asked)
        answers(there)
    assert not any("logprob_token_ids" in body for body in how.asked[asked:])


def test_what_a_server_does_not_tell_is_an_error_and_not_zero(exported: Path) -> None:
    _, server = served(exported, knows_ids=False)
    with server as url:
        there = Predictor.from_pretrained(exported, backend=Backend(url=url, top_logprobs=1))
        with pytest.raises(ValueError, match=r"draw..-.*does not tell .*it is below -.*top_logprobs.*--max-logprobs"):
            there(TEXTS)


def test_a_server_that_is_busy_is_asked_again(here: Predictor, exported: Path) -> None:
    how, server = served(exported, failures=4, key="secret")
    with server as url:
        backend = Backend(url=url, api_key="secret", retries=4)
        assert "secret" not in repr(backend)
        there = Predictor.from_pretrained(exported, backend=backend)
        how.failures = 4
        np.testing.assert_allclose(answers(there), answers(here), atol=1e-5)
        how.failures = 100
        with pytest.raises(ValueError, match="does not answer after 5 tries: 503 busy"):
            there(TEXTS[0])
        how.failures = 0
        with pytest.raises(ValueError, match="wants a key: give api_key, or VARLORA_API_KEY"):
            Predictor.from_pretrained(exported, backend=url)


def test_a_server_of_other_weights_or_none_is_refused(here: Predictor, exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "herds"
    export_adapters(here.run.posterior, other, samples=3, seed=9, source=here.run.path)
    _, server = served(exported, drops=True)
    with server as url:
        with pytest.raises(ValueError, match=r"lacks herds-draw00-.*start the server with the command"):
            Predictor.from_pretrained(other, backend=url)
        with pytest.raises(ValueError, match="does not answer each once"):
            Predictor.from_pretrained(exported, backend=url)(TEXTS)
        with pytest.raises(ValueError, match="samples, dtype decide how a model is loaded here"):
            Predictor.from_pretrained(exported, backend=url, samples=2, dtype="float32")
        with pytest.raises(ValueError, match="the model is at"):
            Predictor.from_pretrained(exported, backend=url).to("cpu")
        with pytest.raises(ValueError, match="is no export"):
            Predictor.from_pretrained(here.run.path, backend=url)
    with pytest.raises(ValueError, match=r"does not answer after 1 try: ConnectError"):
        Predictor.from_pretrained(exported, backend=Backend(url=url, retries=0))
    with pytest.raises(ValueError, match="give a URL"):
        Predictor.from_pretrained(exported, backend="localhost:8000")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """A run of another kind, and its export."""

    def made(name: str, **options: Any) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(name)
        trained = finish_herds(folder, save_model(folder / "model", layers=1), **{**NOISY, **options})
        run = read_run(trained)
        export_adapters(run.posterior, folder / "out", samples=3, seed=run.config.seed, source=trained)
        return trained, folder / "out"

    return made


@pytest.mark.parametrize("normalization", ["none", "bytes"])
def test_choices_that_are_scored_as_texts(texts: Callable[..., tuple[Path, Path]], normalization: str) -> None:
    trained, exported = texts("cloze", prompt_style="cloze", length_normalization=normalization)
    here = Predictor.from_pretrained(trained, samples=3)
    _, server = served(exported)
    with server as url:
        there = Predictor.from_pretrained(exported, backend=url)
        np.testing.assert_allclose(answers(there), answers(here), atol=1e-5)


def test_a_decision_goes_with_the_average_that_it_was_chosen_for(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = read_run(trained)
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    assert main(["decide", str(folder), "--coverage", "0.5", "--samples", "3", "--no_progress"]) == 0
    same = export_adapters(run.posterior, tmp_path / "same", samples=3, seed=run.config.seed, source=folder)
    other = export_adapters(run.posterior, tmp_path / "other", samples=2, source=folder)

    assert other.decision is None
    assert "the run's decision is left out" in caplog.text
    assert same.decision is not None
    expected = [answer.answered for answer in Predictor.from_pretrained(folder, samples=3)(TEXTS)]
    assert {True, False} >= set(expected)
    assert None not in expected
    assert [answer.answered for answer in Predictor.from_pretrained(tmp_path / "same")(TEXTS)] == expected
    _, server = served(tmp_path / "same")
    with server as url:
        assert [a.answered for a in Predictor.from_pretrained(tmp_path / "same", backend=url)(TEXTS)] == expected
        undecided = Predictor.from_pretrained(tmp_path / "same", backend=url, decision=None)
        assert [answer.answered for answer in undecided(TEXTS)] == [None] * len(TEXTS)


def test_texts_are_written_by_each_adapter_and_voted_on(
    texts: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    rows = [
        {"id": f"q{i}", "prompt": f"a {'fine' if i % 2 else 'dull'} film", "completion": " a cat"} for i in range(24)
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), file)
    trained, exported = texts("written", **files, final_answer="text", max_new_tokens=4, temperature_scaling=False)
    here, prompts = Predictor.from_pretrained(trained, samples=3), [row["prompt"] for row in rows[:5]]
    _, server = served(exported)
    with server as url:
        there = Predictor.from_pretrained(exported, backend=url)(prompts)
    for mine, other in zip(here(prompts), there, strict=True):
        assert (other.answer, other.answers, other.agreement) == (mine.answer, mine.answers, mine.agreement)
        assert (other.text, other.finished) == (mine.text, mine.finished)
        assert other.log_likelihood_per_token == pytest.approx(mine.log_likelihood_per_token, abs=1e-5)


def test_answers_that_begin_alike_and_so_are_scored_as_texts(
    texts: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    rows = [{**row, "label": f"a {row['label']}"} for row in herds(40)]
    parts = {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}
    files = {f"{split}_file": write_rows(tmp_path / f"{split}.jsonl", part) for split, part in parts.items()}
    trained, exported = texts("alike", **files)
    here = Predictor.from_pretrained(trained, samples=3)
    assert here.classes == ("a negative", "a positive")
    _, server = served(exported)
    with server as url:
        there = Predictor.from_pretrained(exported, backend=url)
        np.testing.assert_allclose(answers(there), answers(here), atol=1e-5)
