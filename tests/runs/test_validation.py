"""The rows that may be chosen on, and their predictions: those of training where they will do, each made once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from small_runs import films, finish_herds, herds, write_rows
from varlora.metrics import fit_temperature
from varlora.posterior import PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.runs.calibration import also_used_for, calibrate
from varlora.runs.finished import read_finished_folder
from varlora.runs.folder import read_run
from varlora.runs.predict import predict_split
from varlora.runs.setting import reload_setting
from varlora.runs.space import Grid
from varlora.runs.tune import tune
from varlora.runs.tuning import losses
from varlora.runs.usable_rows import exclude_reported
from varlora.runs.validation import ValidationRows
from varlora.tasks import Task


def rows_of(folder: Path) -> ValidationRows:
    finished = read_run(folder)
    return ValidationRows(finished)


def no_model(*_: Any, **__: Any) -> None:
    raise AssertionError("the model is loaded")


def way(temperature: float, samples: int, prune: float = 0.0) -> PredictionConfig:
    return PredictionConfig(temperature=temperature, samples=samples, prune=prune, logit_temperature=2.0)


def test_predictions_of_training_are_used_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varlora.runs.validation.reload_setting", no_model)
    rows, stored = rows_of(finished), read_run(finished)
    for temperature, mode in ((0.0, "mean"), (1.0, "samples")):
        found = rows.log_probs(way(temperature, 4))
        assert torch.equal(found, stored.prediction("validation", mode).log_probs)
        assert torch.equal(rows.labels, stored.prediction("validation", mode).labels)
    assert torch.equal(rows.log_probs(way(1.0, 2)), stored.prediction("validation", "samples").log_probs[:, :2])
    for asked in ((1.0, 6, 0.0), (1.0, 4, 0.1), (0.5, 4, 0.0)):
        with pytest.raises(AssertionError, match="the model is loaded"):
            rows.log_probs(way(*asked))


def test_more_draws_begin_with_the_same_ones(finished: Path) -> None:
    rows = rows_of(finished)
    four = rows.log_probs(way(1.0, 4))
    seven = rows.log_probs(way(1.0, 7))
    assert seven.shape[1] == 7
    assert torch.equal(seven[:, :4], four)


def test_stored_predictions_of_other_rows_are_not_used(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("varlora.runs.validation.reload_setting", no_model)
    rows = rows_of(finished)
    labels = [1 - label for label in rows.task.rows("validation")["label"]]
    changed = rows.task.rows("validation").remove_columns("label").add_column("label", labels)
    rows.task = rows.task.with_splits({"validation": changed})
    with pytest.raises(AssertionError, match="the model is loaded"):
        rows.log_probs(way(1.0, 4))
    assert "not of the rows that the data hold now" in caplog.text


@pytest.mark.parametrize(
    "now", [{"dtype": "bfloat16"}, {"quantization": "8bit"}, {"max_length": 6, "truncation": "left"}]
)
def test_stored_predictions_are_not_those_of_other_settings(
    finished: Path, monkeypatch: pytest.MonkeyPatch, now: dict[str, Any]
) -> None:
    monkeypatch.setattr("varlora.runs.validation.reload_setting", no_model)
    rows = ValidationRows(read_finished_folder(finished, **now))
    for asked in (way(0.0, 4), way(1.0, 4)):
        with pytest.raises(AssertionError, match="the model is loaded"):
            rows.log_probs(asked)
    monkeypatch.setattr("varlora.runs.calibration.reload_setting", no_model)
    with pytest.raises(AssertionError, match="the model is loaded"):
        calibrate(rows.run, PredictionConfig(mode="mean"))
    same = read_finished_folder(
        finished, per_device_eval_batch_size=3, model_name_or_path=rows.run.config.model_name_or_path
    )
    assert calibrate(same, PredictionConfig(mode="mean")).chosen_on.rows > 0  # whose batches and place are no matter


def test_a_temperature_of_training_is_undone_and_kept_as_the_default(model: str, tmp_path: Path) -> None:
    rows = herds(48)
    for row in rows[::3]:  # what is learned is wrong of a third of the rows, so that they ask for a temperature
        row["label"] = "negative" if row["label"] == "positive" else "positive"
    wrong = write_rows(tmp_path / "wrong.jsonl", rows)
    folder = finish_herds(tmp_path, model, temperature_scaling=True, validation_file=wrong)
    finished = read_run(folder)
    left = finished.posterior.meta.logit_temperature_of("samples")
    assert left != 1
    plain = dataclasses.replace(
        finished.posterior,  # type: ignore[type-var]
        meta=dataclasses.replace(finished.posterior.meta, logit_temperatures={}),
    )
    setting = reload_setting(finished)
    expected = predict_split(setting, plain, "validation", PredictionConfig(samples=4))
    assert isinstance(expected, Prediction)
    assert torch.allclose(rows_of(folder).log_probs(way(1.0, 4)), expected.log_probs, rtol=0, atol=1e-9)
    tuning = tune(folder, Grid(samples=[4], fractions=[], temperatures=[1], standard_errors=1e6))
    stored = finished.prediction("validation", "samples")
    assert tuning.choice.nll_before == pytest.approx(float(losses(stored.log_probs, stored.labels).mean()), rel=1e-9)
    assert tuning.choice.chosen.config.logit_temperature == left


def test_the_default_fits_a_temperature_on_labelled_validation_rows(model: str, tmp_path: Path) -> None:
    rows = herds(48)
    for row in rows[::3]:
        row["label"] = "negative" if row["label"] == "positive" else "positive"
    wrong = write_rows(tmp_path / "wrong.jsonl", rows)
    left = read_run(finish_herds(tmp_path / "default", model, held_out="auto", validation_file=wrong))
    decided = left.posterior.meta.diagnostics["logit_temperature"]  # type: ignore[index]
    for mode in ("mean", "samples"):
        made = left.prediction("validation", mode)
        expected = fit_temperature(made.at_temperature(1.0).log_probs, made.labels).value
        assert made.logit_temperature == left.posterior.meta.logit_temperature_of(mode) == decided[mode]["value"] != 1
        assert expected == pytest.approx(made.logit_temperature, rel=1e-6)
        assert decided[mode]["rows"] == 48
    assert also_used_for(left) == ("a temperature of the logits was fitted",)


def test_the_temperature_is_left_out_where_the_settings_say_so(model: str, tmp_path: Path) -> None:
    left = read_run(finish_herds(tmp_path, model, held_out="auto", max_steps=2, temperature_scaling=False))
    assert "logit_temperature" not in (left.posterior.meta.diagnostics or {})


def test_rows_that_are_test_rows_are_left_out(model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*herds(24), *films(4)]
    folder = finish_herds(tmp_path, model, validation_file=write_rows(tmp_path / "mixed.jsonl", rows), max_steps=2)
    tuning = tune(folder, Grid(fractions=[], temperatures=[1], samples=[4]))
    assert (tuning.rows, tuning.left_out) == (24, 4)
    assert "4 validation rows are test rows, too" in caplog.text
    stored = read_run(folder).prediction("validation", "samples")
    expected = losses(stored.log_probs[:24], stored.labels[:24])
    assert tuning.choice.nll_before == float(expected.mean())


def test_rows_with_an_answer_whose_prompts_are_not_reported_may_be_chosen_on() -> None:
    def split(*prompts: str) -> datasets.Dataset:
        rows = {"id": list(prompts), "prompt": list(prompts), "label": [0] * len(prompts)}
        return datasets.Dataset.from_dict({**rows, "num_choices": [2] * len(prompts)})

    task = Task(name="t", kind="label", answers=("a", "b"), splits={"test": split("x", "y"), "shift": split("z")})
    answered, prompts = torch.tensor([True, True, False, True, False]), [" X", "z", "y", "v", "w"]
    for splits, kept, left_out in (
        (["test"], [False, True, False, True, False], 1),
        (["test", "shift"], [False, False, False, True, False], 2),
        (["ood"], answered.tolist(), 0),
        ([], answered.tolist(), 0),
    ):
        found = exclude_reported(answered, prompts, task, splits)
        assert (found[0].tolist(), found[1]) == (kept, left_out)
    assert torch.equal(exclude_reported(answered, (), task, [])[0], answered)


def test_too_few_rows(model: str, tmp_path: Path) -> None:
    rows = [*herds(19), *films(8)]
    folder = finish_herds(tmp_path, model, validation_file=write_rows(tmp_path / "mixed.jsonl", rows), max_steps=1)
    with pytest.raises(ValueError, match=r"has 19 labelled row\(s\) to choose on \(8 others are test rows, too"):
        tune(folder)
