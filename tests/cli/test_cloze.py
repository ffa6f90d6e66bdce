"""Choices scored as texts, from training to other files' rows: the same contract as any readout's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.workshop import Outcome
from small_runs import config, save_model, write_rows
from varlora.posterior import KroneckerGaussian, PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import modes_of
from varlora.readout.readout import ChoiceTexts
from varlora.runs.folder import read_run
from varlora.runs.predict import predict_split
from varlora.runs.run import run
from varlora.runs.setting import reload_setting

Call = Callable[..., Outcome]
OTHERS = ("a cow film", "hen", "a fine dog")


def questions(rows: int, offset: int = 0) -> list[dict[str, Any]]:
    """Films of which one of two to five choices says how they are, wherever it stands."""
    made = []
    for i in range(offset, offset + rows):
        choices = ["positive", "so negative", *OTHERS[: i % 4]]
        choices = choices[i % len(choices) :] + choices[: i % len(choices)]
        right = "positive" if i % 2 else "so negative"
        text = f"a {('dull', 'fine')[i % 2]} {('cat', 'dog', 'cow', 'hen')[i // 2 % 4]} film {'a ' * (i % 3)}"
        made.append({"id": f"q{i}", "question": text, "choices": choices, "answer": choices.index(right)})
    return made


@pytest.fixture(scope="module", params=["ivon", "laplace"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose lower layer is computed once for each sequence."""
    folder = tmp_path_factory.mktemp(request.param)
    files = {"train": questions(32), "validation": questions(16, 32), "test": questions(24, 48)}
    given = {f"{name}_file": write_rows(folder / f"{name}-q.jsonl", rows) for name, rows in files.items()}
    settings = config(
        folder,
        save_model(folder / "model", layers=2),
        method=request.param,
        prompt_style="cloze",
        length_normalization="bytes" if request.param == "laplace" else None,
        lora_layers="top:1",
        lora_target_modules="all-linear",
        cache_frozen_layers=True,
        learning_rate=0.05,
        max_steps=40,
        **given,
    )
    run(settings, progress=False)
    return Path(settings.output_dir)


def test_it_learns_and_its_folder_knows_how_it_is_read(trained: Path) -> None:
    finished = read_run(trained)
    normalization = finished.config.length_normalization or "none"
    expected = ChoiceTexts(answers=tuple("ABCDE"), length_normalization=normalization)
    assert finished.posterior.meta.readout == expected.to_dict()
    for mode in modes_of(finished.posterior):
        prediction = finished.prediction("test", mode)
        assert prediction.classes == tuple("ABCDE")
        if mode == "mean" or not isinstance(finished.posterior, KroneckerGaussian) or mode == "linearised":
            assert (prediction.probs.argmax(1) == prediction.labels).double().mean() > 0.9, mode
        offered = [len(q["choices"]) for q in questions(24, 48)]
        assert torch.isfinite(prediction.log_probs).all(1).sum(-1).tolist() == offered
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-generation" in card
    assert "probabilities of the answers, by how likely each choice's text is behind the question" in card


def test_a_reloaded_run_without_the_cache_predicts_the_same(trained: Path) -> None:
    finished = read_run(trained)
    whole = dataclasses.replace(finished.config, cache_frozen_layers=False)
    setting = reload_setting(dataclasses.replace(finished, config=whole))
    for mode in modes_of(finished.posterior):
        again = predict_split(setting, finished.posterior, "test", PredictionConfig(mode=mode))
        assert isinstance(again, Prediction)
        torch.testing.assert_close(again.log_probs, finished.prediction("test", mode).log_probs, rtol=0, atol=1e-4)


def test_other_files_are_asked_alike(call: Call, trained: Path, tmp_path: Path) -> None:
    rows = questions(24, 48)
    labelled = write_rows(tmp_path / "labelled.jsonl", rows)
    asked = write_rows(tmp_path / "new.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in rows])
    expected = read_run(trained).prediction("test", "mean")

    done = call("eval", trained, "--test_file", labelled, "--samples", 0, "--no_progress")
    assert (done.code, done.err) == (0, done.err)
    answers = tmp_path / "answers.jsonl"
    done = call("predict", trained, "--input_file", asked, "--output_file", answers, "--samples", 0, "--no_progress")
    assert (done.code, done.err) == (0, done.err)

    found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [row["prediction"] for row in found] == ["ABCDE"[c] for c in expected.probs.argmax(1).tolist()]
    assert [len(row["probabilities"]) for row in found] == [len(row["choices"]) for row in rows]
    six = write_rows(tmp_path / "six.jsonl", [{"question": "a film", "choices": list("abcdef")}])
    refused = call("predict", trained, "--input_file", six, "--output_file", tmp_path / "six-answers.jsonl")
    assert "at most 5, as many as in training" in refused.err


def test_its_options_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length_normalization is 'bytes', which has no effect without prompt_style="):
        config(tmp_path, "m", length_normalization="bytes")
