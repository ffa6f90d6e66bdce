"""A run from start to end: its folder, its interruption, and what its settings reach."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import Trainer

from small_runs import StopAfter, Stopped, config, films, herds, save_model, write_rows
from varlora.io.files import finite
from varlora.ivon.trainer_checkpoint import posterior_from_checkpoint
from varlora.methods import Ivon
from varlora.methods.method import Job
from varlora.posterior import DiagonalGaussian, Posterior
from varlora.prediction.prediction import Prediction
from varlora.runs.checkpoints import checkpoints_of
from varlora.runs.config import RunConfig
from varlora.runs.folder import CompletionScores, read_run
from varlora.runs.predict import predict_answers
from varlora.runs.result import RunResult
from varlora.runs.run import Trained, evaluate, method_of, run, train
from varlora.runs.run import run as run_function
from varlora.runs.setting import load_setting, reload_setting


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunResult]:
    folder = tmp_path_factory.mktemp("finished")
    ood = write_rows(folder / "ood.jsonl", [{"text": f"a {w} hen", "label": -1} for w in ("cat", "dog", "cow")])
    validation = write_rows(folder / "herds.jsonl", herds(16))
    settings = config(folder, model, ood_file=ood, validation_file=validation, save_steps=10)
    return settings, run(settings, progress=False)


def interrupt(settings: RunConfig, step: int) -> None:
    """Leaves behind what a run leaves that was killed after a step."""
    with pytest.raises(Stopped):
        train(
            load_setting(settings),
            method_of(settings),
            checkpoints=checkpoints_of(settings),
            progress=False,
            callbacks=[StopAfter(step)],
        )


def assert_equal(first: Posterior, second: Posterior) -> None:
    assert first.mean.keys() == second.mean.keys()
    for key in first.mean:
        assert torch.equal(first.mean[key], second.mean[key]), key
        assert torch.equal(first.variance[key], second.variance[key]), key


def test_a_temperature_that_nobody_asked_for_loses_no_run(
    finished: tuple[RunConfig, RunResult], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings, result = finished
    setting = reload_setting(read_run(settings.output_dir))
    trained, once = Trained(posterior=result.posterior, seconds=0.0, log=[]), predict_answers

    def impossible(*args: Any, **kwargs: Any) -> Prediction:
        made = once(*args, **kwargs)
        log_probs = made.log_probs.clone()
        log_probs[0, :, made.labels[0]] = -torch.inf
        return replace(made, log_probs=log_probs.log_softmax(-1))

    monkeypatch.setattr("varlora.runs.run.predict_answers", impossible)
    found = evaluate(setting, trained, progress=False)

    assert found.metrics["validation"]["mean"]["nll"] == math.inf
    assert "no temperature of the logits is fitted, which was not asked for: some row's label" in caplog.text
    asked = replace(setting, config=replace(setting.config, temperature_scaling=True))
    with pytest.raises(ValueError, match="no temperature can make it likely"):
        evaluate(asked, trained, progress=False)


def test_only_validation_rows_that_are_no_test_rows_fit_the_temperature(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = write_rows(tmp_path / "mixed.jsonl", [*films(5), *herds(16)])
    settings = config(tmp_path, model, max_steps=2, validation_file=mixed)
    result = run(settings, progress=False)
    found = result.posterior.meta.diagnostics
    assert found is not None
    assert {mode: fit["rows"] for mode, fit in found["logit_temperature"].items()} == {"mean": 16, "samples": 16}
    assert "5 validation rows are test rows, too, and decide nothing" in caplog.text
    assert (result.health.validation_rows, result.health.learned.rows if result.health.learned else 0) == (16, 16)
    assert read_run(settings.output_dir).health() == result.health
    assert "only 16 validation rows have a label and are no test rows, and it takes 20" in found["sampling"]["why"]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature_scaling": True},
        {"early_stopping": True},
        {"held_out": "validation"},
        {"method": "temperature"},
        {"method": "laplace", "prior_choice": "validation"},
    ],
)
def test_what_only_validation_rows_can_decide_is_refused_where_all_are_test_rows(
    options: dict[str, Any], model: str, tmp_path: Path
) -> None:
    settings = config(tmp_path, model, validation_file=write_rows(tmp_path / "same.jsonl", films(16)), **options)
    with pytest.raises(ValueError, match="validation rows"):
        run(settings, progress=False)


def test_where_all_validation_rows_are_test_rows_nothing_is_steered_and_no_temperature_fitted(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = write_rows(tmp_path / "same.jsonl", films(16))
    settings = config(tmp_path, model, validation_file=same, max_steps=2)
    result = run(settings, progress=False)
    found = result.posterior.meta.diagnostics
    assert found is not None
    unknown = "the validation rows that have a label are test rows, too"
    assert found["sampling"] == {"helps": False, "why": f"nothing can be said of sampling: {unknown}"}
    assert read_run(settings.output_dir).health() == result.health
    assert "logit_temperature" not in found
    assert "there are no validation rows" in found["held_out"]["why"]
    assert "16 validation rows are test rows, too, and decide nothing" in caplog.text


def test_early_stopping_goes_by_validation_rows_that_are_no_test_rows(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = {"method": "adamw", "early_stopping": True, "eval_steps": 2, "max_steps": 4}
    losses = []
    for name, rows in (("mixed", [*films(5), *herds(16)]), ("new", herds(16))):
        validation = write_rows(tmp_path / f"{name}.jsonl", rows)
        result = run(config(tmp_path / name, model, validation_file=validation, **options), progress=False)
        losses.append([entry["eval_loss"] for entry in result.log if "eval_loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert caplog.text.count("lowest mean loss over 16 validation rows") == 2


def test_the_folder_tells_what_the_run_returned(finished: tuple[RunConfig, RunResult]) -> None:
    settings, result = finished
    folder = read_run(settings.output_dir)
    assert folder.config == settings
    assert_equal(folder.posterior, result.posterior)
    assert folder.metrics == finite(result.metrics)
    assert folder.facts["fingerprint"] == settings.fingerprint
    assert folder.facts["task"]["rows"] == {"train": 32, "validation": 16, "test": 24, "ood": 3}
    for split, modes in result.predictions.items():
        assert modes.keys() == {"mean", "samples"}
        for mode, prediction in modes.items():
            assert isinstance(prediction, Prediction)
            stored = folder.prediction(split, mode)
            assert torch.equal(stored.log_probs, prediction.log_probs)
            assert torch.equal(stored.labels, prediction.labels)
            assert stored.ids == prediction.ids
    steps = [json.loads(line).get("step") for line in (folder.path / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == settings.max_steps
    assert not checkpoints_of(settings).exists()


def test_out_of_scope_rows_are_measured_against_the_test_split(finished: tuple[RunConfig, RunResult]) -> None:
    measured = finished[1].metrics["ood"]
    assert set(measured["mean"]) == {"auroc_entropy", "fpr95_entropy"}
    assert set(measured["samples"]) > set(measured["mean"])


def test_numbers_that_json_cannot_hold_are_null(finished: tuple[RunConfig, RunResult], tmp_path: Path) -> None:
    given = {"a": [math.inf, -math.inf, math.nan, 1.5], "b": {"c": (2, "x", None, True)}}
    assert finite(given) == {"a": [None, None, None, 1.5], "b": {"c": [2, "x", None, True]}}


def test_a_prediction_that_is_not_there_is_named(finished: tuple[RunConfig, RunResult]) -> None:
    with pytest.raises(
        ValueError, match=r"has no predictions test\.pruned; it has ood\.mean, ood\.samples, test\.mean"
    ):
        read_run(finished[0].output_dir).prediction("test", "pruned")


@pytest.mark.parametrize(("file", "content"), [("metrics.json", "{"), ("run.json", "[]")])
def test_a_damaged_file_is_named(
    finished: tuple[RunConfig, RunResult], tmp_path: Path, file: str, content: str
) -> None:
    source = Path(finished[0].output_dir)
    for path in source.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_run(tmp_path).config == finished[0]
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file}(: it is \[\], not an object| is not sound JSON)"):
        read_run(tmp_path)


def test_another_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run folder: it lacks config\.yaml, run\.json"):
        read_run(tmp_path)


def test_a_taken_folder_is_refused_before_any_work(
    finished: tuple[RunConfig, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("work was done")

    monkeypatch.setitem(run_function.__globals__, "load_setting", never)
    with pytest.raises(ValueError, match="overwrite"):
        run(finished[0], progress=False)


def test_overwriting_replaces_the_folder(model: str, tmp_path: Path) -> None:
    settings = config(tmp_path, model, max_steps=1, samples=0)
    run(settings, progress=False)
    (Path(settings.output_dir) / "left over").write_text("")
    result = run(replace(settings, seed=1), overwrite=True, progress=False)
    assert not (Path(settings.output_dir) / "left over").exists()
    assert_equal(read_run(settings.output_dir).posterior, result.posterior)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    finished: tuple[RunConfig, RunResult], tmp_path: Path
) -> None:
    settings = replace(finished[0], output_dir=str(tmp_path / "run"))
    interrupt(settings, step=13)
    with pytest.raises(ValueError, match=r"unfinished run .* --resume, or start afresh with --overwrite"):
        run(settings, progress=False)
    with pytest.raises(ValueError, match="had other settings"):
        run(replace(settings, method_options={**settings.method_options, "ess": 2e5}), resume=True, progress=False)
    result = run(settings, resume=True, progress=False)
    assert_equal(result.posterior, finished[1].posterior)
    assert finite(result.metrics) == finite(finished[1].metrics)
    whole, resumed = (read_run(one.output_dir) for one in (finished[0], settings))
    assert whole.train_seconds == whole.facts["seconds"]["train"]
    assert resumed.train_seconds is None  # the last three of its steps took resumed.facts["seconds"]["train"]


def test_resuming_on_changed_rows_is_refused(model: str, tmp_path: Path) -> None:
    settings = config(tmp_path, model, max_steps=5, save_steps=2)
    interrupt(settings, step=3)
    assert settings.train_file is not None
    lines = Path(settings.train_file).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(settings.train_file).write_text("".join(lines[:-4]), encoding="utf-8")
    with pytest.raises(ValueError, match="rows have changed"):
        run(settings, resume=True, progress=False)


def test_resuming_without_a_checkpoint_starts_from_the_beginning(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(tmp_path, model, max_steps=1, samples=0)
    run(settings, resume=True, progress=False)
    assert "no checkpoint" in caplog.text
    assert read_run(settings.output_dir).train_seconds is not None


def test_early_stopping_keeps_the_best_checkpoint_with_its_own_hessian(model: str, tmp_path: Path) -> None:
    other = {"positive": "negative", "negative": "positive"}
    wrong = [row | {"label": other[row["label"]]} for row in herds(16)]
    settings = config(
        tmp_path,
        model,
        early_stopping=True,
        eval_steps=4,
        max_steps=20,
        validation_file=write_rows(tmp_path / "wrong.jsonl", wrong),  # the better it learns, the worse the loss
        beta2=0.9,
        prior="adaptive",
        variance="hessian",
        lora_dropout=0.0,
    )
    checkpoints = checkpoints_of(settings)
    result = train(load_setting(settings), method_of(settings), checkpoints=checkpoints, progress=False)
    losses = {entry["step"]: entry["eval_loss"] for entry in result.log if "eval_loss" in entry}
    best = min(losses, key=losses.__getitem__)
    assert list(losses) == [4, 8, 12, 16, 20]
    assert best < 20, "this test needs a best step before the last"
    assert_equal(result.posterior, posterior_from_checkpoint(checkpoints / f"checkpoint-{best}"))
    last = posterior_from_checkpoint(checkpoints / "checkpoint-20")
    assert any(not torch.equal(last.variance[key], value) for key, value in result.posterior.variance.items())


@dataclass(frozen=True, kw_only=True)
class Watched(Ivon):
    """Keeps its trainer."""

    def trainer(self, job: Job) -> Trainer:
        TRAINERS.append(super().trainer(job))
        return TRAINERS[-1]


TRAINERS: list[Any] = []


def test_every_option_of_ivon_reaches_the_optimizer(model: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "recipe": "cong2024",
        "update": "newton",
        "learning_rate": 0.5,
        "ess": 1234.0,
        "hess_init": 0.25,
        "clip_radius": 0.125,
        "beta1": 0.5,
        "beta2": 0.75,
        "weight_decay": 0.01,
        "prior": "adaptive",
        "variance": "hessian",
        "draws": 3,
    }
    settings = config(tmp_path, model, max_steps=2, lr_scheduler_type="constant", **options)
    method = Watched(**options)
    TRAINERS.clear()
    result = train(load_setting(settings), method, checkpoints=checkpoints_of(settings), progress=False)
    [trainer] = TRAINERS
    [group] = trainer.optimizer.param_groups
    assert (group["lr"], group["ess"], group["hess_init"]) == (0.5, 1234.0, 0.25)
    assert (group["betas"], group["clip_radius"], group["weight_decay"]) == ((0.5, 0.75), 0.125, 0.01)
    assert group["prior"] == "adaptive"
    assert trainer.variational.draws == 3
    assert result.posterior.meta.ess == 1234.0
    assert isinstance(result.posterior, DiagonalGaussian)


def test_ess_is_set_from_the_training_rows(model: str, tmp_path: Path) -> None:
    settings = config(tmp_path, model, max_steps=1, held_out="none")
    result = train(load_setting(settings), method_of(settings), checkpoints=checkpoints_of(settings), progress=False)
    assert result.posterior.meta.ess == 3200.0


def completions(rows: int) -> list[dict[str, str]]:
    return [{"prompt": f"a {('cat', 'dog', 'cow', 'hen')[i % 4]}", "completion": " fine film"} for i in range(rows)]


def test_completions_are_trained_and_scored(model: str, tmp_path: Path) -> None:
    files = {f"{split}_file": write_rows(tmp_path / f"c-{split}.jsonl", completions(16)) for split in ("train", "test")}
    scores: dict[int, float] = {}
    for steps in (1, 20):
        settings = config(
            tmp_path / str(steps), model, **files, validation_file=None, validation_size=4, max_steps=steps, samples=2
        )
        result = run(settings, progress=False)
        assert isinstance(result.predictions["test"]["samples"], CompletionScores)
        metrics = read_run(settings.output_dir).metrics
        assert metrics["test"].keys() == metrics["validation"].keys() == {"mean", "samples"}
        scores[steps] = metrics["test"]["mean"]["nll_per_token"]
        assert (Path(settings.output_dir) / "predictions" / "test.samples.parquet").is_file()
    assert scores[20] < 0.7 * scores[1]


def test_the_settings_in_the_folder_repeat_the_run(finished: tuple[RunConfig, RunResult]) -> None:
    stored: dict[str, Any] = yaml.safe_load((Path(finished[0].output_dir) / "config.yaml").read_text())
    assert RunConfig.from_dict(stored) == finished[0]


def test_gradient_checkpointing_changes_nothing(model: str, tmp_path: Path) -> None:
    posteriors = []
    for on in (False, True):
        settings = config(tmp_path / str(on), model, max_steps=4, gradient_checkpointing=on, lora_dropout=0.0)
        posteriors.append(
            train(
                load_setting(settings), method_of(settings), checkpoints=tmp_path / f"c{on}", progress=False
            ).posterior
        )
    without, with_checkpointing = posteriors
    differences: list[Tensor] = [(without.mean[k] - with_checkpointing.mean[k]).abs().max() for k in without.mean]
    assert max(differences) < 1e-6


@pytest.mark.parametrize("method", ["adamw", "ivon", "swag", "blob"])
def test_a_training_of_no_step_is_refused_whatever_the_method(tmp_path: Path, method: str) -> None:
    with pytest.raises(ValueError, match="max_steps is 0, which would train nothing; give a positive number"):
        run(config(tmp_path, "no model is loaded", method=method, max_steps=0), progress=False)
