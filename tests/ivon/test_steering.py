"""λ steered through the real Trainer: which way it moves, by which rows, and that a resumed run goes on with it."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState

from steered_tasks import (
    Classifier,
    Rows,
    VariationalTrainer,
    Watched,
    arguments,
    group_of,
    ivon_of,
    state_of,
    trainer_of,
)
from varlora import IVON, IVONConfig, VariationalCallback, load_posterior, posterior_of, save_posterior
from varlora.ivon.ess_control import BOUNDS
from varlora.ivon.held_out import HeldOut
from varlora.ivon.noise import NoiseController
from varlora.ivon.steering import Steering, plan_of
from varlora.ivon.trainer_held_out import IN_A_RUN, validation_rows
from varlora.ivon.withholding import withheld_of
from varlora.posterior.held_out_record import HeldOutRecord
from varlora.posterior.training_record import training_record

LONG = {"num_train_epochs": 40, "per_device_train_batch_size": 160}  # 80 steps, which pay for eleven measurements
NOISY = {**LONG, "learning_rate": 1e-2}  # long enough to learn wrong labels by heart
SHORT: dict[str, Any] = {"num_train_epochs": 2}
DROPPED = {"per_device_train_batch_size": 60, "gradient_accumulation_steps": 4, "dataloader_drop_last": True}
SLOW = {**LONG, "learning_rate": 2.5e-4}  # too slow to be sure of right ones


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[VariationalTrainer, Watched]:
    """A training that learns wrong labels by heart, steered by 200 validation rows."""
    watched = Watched()
    options = {**NOISY, "logging_strategy": "steps", "logging_steps": 20, "eval_strategy": "epoch"}
    validation = Rows(200, flipped=0.2, seed=1)
    trainer = trainer_of(tmp_path_factory.mktemp("noisy"), validation=validation, callbacks=[watched], **options)
    trainer.train()
    return trainer, watched


# Which way it moves -------------------------------------------------------------------------------------------


def test_over_confidence_on_validation_rows_lowers_lambda(noisy: tuple[VariationalTrainer, Watched]) -> None:
    trainer, watched = noisy
    group = group_of(trainer)
    assert group["auto_ess"] == 32_000.0
    assert watched.ratios[:16] == [1.0] * 16, "nothing moves in the first fifth"
    assert watched.ratios[-1] == pytest.approx(BOUNDS[0])
    assert watched.ratios == sorted(watched.ratios, reverse=True)
    assert group["ess"] == pytest.approx(watched.ratios[-1] * group["auto_ess"])
    assert (group["held_out_source"], group["held_out_rows"]) == ("validation", 200)


def test_it_helps(noisy: tuple[VariationalTrainer, Watched], tmp_path: Path) -> None:
    """The reason for all of it: held-out predictions under draws get better."""
    unsteered = trainer_of(tmp_path, held_out="none", **NOISY)
    unsteered.train()
    losses = {}
    for held_out, trainer in (("validation", noisy[0]), ("none", unsteered)):
        model = trainer.model
        assert isinstance(model, Classifier)
        q = posterior_of(model, trainer.optimizer)
        test = Rows(500, flipped=0.2, seed=2)
        probs = []
        for seed in range(8):
            with torch.no_grad():
                tensors = q.sample(torch.Generator().manual_seed(seed))
                found = torch.func.functional_call(model.eval(), tensors, (test.features, test.labels))
            probs.append(found.logits.softmax(-1))
        losses[held_out] = nn.functional.nll_loss(torch.stack(probs).mean(0).log(), test.labels).item()
    assert losses["validation"] < losses["none"] - 0.1


def test_under_confidence_raises_lambda_within_its_bound(tmp_path: Path) -> None:
    watched = Watched()
    train, validation = Rows(320), Rows(200, seed=1)
    trainer_of(tmp_path, train=train, validation=validation, callbacks=[watched], **SLOW).train()
    assert max(watched.ratios) > 1.3
    assert max(watched.ratios) <= BOUNDS[1] + 1e-9
    assert min(watched.ratios) == 1.0


def test_withheld_rows_steer_are_replaced_and_come_back(tmp_path: Path) -> None:
    watched = Watched()
    trainer = trainer_of(tmp_path, held_out="train", callbacks=[watched], **NOISY)
    trainer.train()
    withheld = withheld_of(range(320), epochs=40, seed=3)
    assert withheld is not None
    assert (len(withheld.rows), withheld.epochs) == (32, 24)
    kept = set(range(320)) - set(withheld.rows)
    for epoch, rows in enumerate(watched.rows):
        assert len(rows) == 320
        assert set(rows) == (kept if epoch < 24 else set(range(320)))
    measured = [set(rows) for rows in watched.measured]
    assert measured[8] == measured[23] == set(withheld.rows)
    assert not any(measured[epoch] for epoch in (*range(8), *range(24, 40)))
    last = watched.epochs.index(24.0) + 1  # λ is read before it is steered
    assert watched.ratios[last] < 0.5
    assert len(set(watched.ratios[last:])) == 1, "rows that were trained on say nothing"
    assert group_of(trainer)["held_out_source"] == "train"


@pytest.mark.parametrize("held_out", [None, "auto"])
def test_by_default_validation_rows_go_first(tmp_path: Path, held_out: Any) -> None:
    for validation, source in ((Rows(40, seed=1), "validation"), (None, "train")):
        watched = Watched()
        trainer = trainer_of(tmp_path, held_out=held_out, validation=validation, callbacks=[watched], **SHORT)
        trainer.train()
        assert group_of(trainer)["held_out_source"] == source
        assert (set(watched.rows[0]) == set(range(320))) == (source == "validation")


def test_train_by_name_leaves_validation_rows_alone(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, held_out="train", validation=Rows(40, seed=1), **SHORT)
    trainer.train()
    assert group_of(trainer)["held_out_source"] == "train"


@pytest.mark.parametrize("options", [{"held_out": "none"}, {"ess": 4e3}])
def test_what_is_not_steered_stays_and_withholds_nothing(tmp_path: Path, options: Any) -> None:
    trainer = trainer_of(tmp_path, **options, num_train_epochs=1)
    trainer.train()
    group = group_of(trainer)
    assert group["ess"] == options.get("ess", 32_000.0)
    assert "held_out" not in group
    assert "held_out" not in training_record(ivon_of(trainer))
    assert isinstance(trainer.model, Classifier)
    assert sorted(trainer.model.trained_on) == list(range(320))
    assert not trainer.model.predicted
    assert "held_out" not in posterior_of(trainer.model, trainer.optimizer).meta.diagnostics


@pytest.mark.parametrize(
    ("options", "epochs", "withheld_epochs"),
    [
        ({"num_train_epochs": 2.5}, 3, 2),
        ({"max_steps": 60}, 3, 2),
        ({"max_steps": 30, "gradient_accumulation_steps": 2}, 3, 2),
        ({"num_train_epochs": 0.5}, 1, 0),
        ({"max_steps": 7}, 1, 0),
        ({"max_steps": 10, "per_device_train_batch_size": 200}, 5, 3),  # two steps an epoch, of 200 and of 120 rows
        ({**DROPPED, "max_steps": 10}, 5, 3),  # two again, of 240 and of 60
    ],
)
def test_parts_of_epochs_and_numbers_of_steps(tmp_path: Path, options: Any, epochs: int, withheld_epochs: int) -> None:
    watched = Watched()
    trainer = trainer_of(tmp_path, held_out="train", callbacks=[watched], **options)
    trainer.train()
    withheld = set(withheld_of(range(320), 1, seed=3).rows)  # type: ignore[union-attr]
    found = [bool(withheld & set(rows)) for rows in watched.rows]
    assert found == [epoch >= withheld_epochs for epoch in range(epochs)]
    record = training_record(ivon_of(trainer)).get("held_out")
    assert (record is not None) == (withheld_epochs > 0), "where a tenth pays for too few rows, none are withheld"
    assert record is None or HeldOutRecord.from_dict(record).measurements > 0


@pytest.mark.parametrize(
    ("options", "returned", "steps"),
    [
        ({"num_train_epochs": 10.2, "per_device_train_batch_size": 160}, 12, 21),
        ({"max_steps": 21, "per_device_train_batch_size": 80, "gradient_accumulation_steps": 2}, 12, 21),
        ({"num_train_epochs": 1.3}, 20, 26),
    ],
)
def test_withheld_rows_are_asked_last_when_they_come_back(
    tmp_path: Path, options: Any, returned: int, steps: int
) -> None:
    """Also where the last epoch is only begun."""
    trainer = trainer_of(tmp_path, held_out="train", **options)
    trainer.train()
    (callback,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, VariationalCallback))
    assert callback.steering is not None
    assert (callback.steering.plan.steps[-1], trainer.state.global_step) == (returned, steps)
    assert HeldOutRecord.from_dict(callback.steering.record["held_out"]).measurements == len(
        callback.steering.plan.steps
    )


@pytest.mark.parametrize("nothing", [{"num_train_epochs": 0}, {"max_steps": 0}])
@pytest.mark.parametrize("source", ["train", "validation"])
def test_a_training_of_no_step_leaves_a_folder(tmp_path: Path, source: str, nothing: Any) -> None:
    validation = Rows(60, seed=1) if source == "validation" else None
    trainer = trainer_of(tmp_path, held_out=source, validation=validation, **nothing)
    assert isinstance(trainer.model, Classifier)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    q = load_posterior(tmp_path / "saved")
    assert trainer.state.global_step == 0
    assert all(torch.equal(q.point[name], value) for name, value in before.items())
    assert not trainer.model.trained_on
    assert "of 0 training steps" in q.meta.diagnostics["held_out"]["why"]


def test_validation_rows_without_labels_steer_nothing_which_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unlabelled = Rows(60, seed=1)
    unlabelled.labels = torch.full_like(unlabelled.labels, -100)
    trainer = trainer_of(tmp_path, validation=unlabelled, max_steps=60)
    trainer.train()
    told = "none of the 60 rows has a label"
    assert told in caplog.text
    assert told in posterior_of(trainer.model, trainer.optimizer).meta.diagnostics["held_out"]["why"]
    with pytest.raises(ValueError, match=f"held_out='validation' cannot be: .*{told}"):
        trainer_of(tmp_path, validation=unlabelled, held_out="validation", max_steps=60).train()


def test_accumulated_steps_are_measured_between_steps_only(tmp_path: Path) -> None:
    watched = Watched()
    options = {**NOISY, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 80}
    trainer = trainer_of(tmp_path, validation=Rows(200, flipped=0.2, seed=1), callbacks=[watched], **options)
    trainer.train()
    assert watched.ratios[-1] == pytest.approx(BOUNDS[0])
    assert len(watched.ratios) == 80


# Records ------------------------------------------------------------------------------------------------------


STOPS = (43, 60, 97)


class SaveAtStops(TrainerCallback):
    """Asks for checkpoints at `STOPS`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or state.global_step in STOPS


def accumulated(folder: Path, source: str) -> tuple[VariationalTrainer, Watched]:
    """Of 100 steps, with dropout, steered from some source."""
    watched = Watched()
    trainer = trainer_of(
        folder,
        model=Classifier(dropout=0.2),
        held_out=source,
        validation=Rows(60, flipped=0.4, seed=1) if source == "validation" else None,
        callbacks=[watched, SaveAtStops()],
        learning_rate=3e-2,
        num_train_epochs=20,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=2,
        lr_scheduler_type="linear",
    )
    return trainer, watched


@pytest.fixture(scope="module", params=["validation", "train"])
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, VariationalTrainer, Watched]:
    folder = tmp_path_factory.mktemp(request.param)
    trainer, watched = accumulated(folder, request.param)
    trainer.train()
    return request.param, folder, trainer, watched


@pytest.mark.parametrize("stop", STOPS)
def test_resuming_a_steered_run_is_bit_identical(
    uninterrupted: tuple[str, Path, VariationalTrainer, Watched], tmp_path: Path, stop: int
) -> None:
    """In the middle of an epoch and at its end, with dropout and accumulation, while rows are withheld and after."""
    source, folder, trainer, watched = uninterrupted
    assert min(watched.ratios) < 0.8
    resumed, rewatched = accumulated(tmp_path, source)
    torch.rand(17)  # whatever the new process drew meanwhile
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
    assert rewatched.ratios == watched.ratios[stop:]
    assert rewatched.rows[1:] == watched.rows[len(watched.rows) - len(rewatched.rows) + 1 :]
    assert state_of(resumed) == state_of(trainer)


def test_measuring_changes_nothing_but_lambda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the training that measures nothing, with dropout, where measurements do not move λ."""
    results = []
    monkeypatch.setattr("varlora.ivon.steering.steered_ess", lambda ess, *args: ess)
    for held_out in ("validation", "none"):
        trainer = trainer_of(
            tmp_path, model=Classifier(dropout=0.2), held_out=held_out, validation=Rows(60, seed=1), num_train_epochs=2
        )
        trainer.train()
        assert isinstance(trainer.model, nn.Module)
        results.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*results)


def test_lambda_is_logged_and_the_rows_words_are_kept(
    noisy: tuple[VariationalTrainer, Watched], tmp_path: Path
) -> None:
    trainer, _ = noisy
    logged = [entry["ess"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] > logged[-1] == group_of(trainer)["ess"]
    q = posterior_of(trainer.model, trainer.optimizer, num_examples=320)
    found = q.meta.diagnostics["held_out"]
    assert json.loads(json.dumps(found)) == found
    assert (found["source"], found["rows"], found["ess_start"]) == ("validation", 200, 32_000.0)
    assert q.meta.ess == group_of(trainer)["ess"] != found["ess_start"]
    record = HeldOutRecord.from_dict(training_record(ivon_of(trainer))["held_out"])
    assert record is not None
    assert found["measurements"] == record.measurements == 11
    of_mean = record.log_temperature(200, of="mean")
    assert (found["mean_log_temperature"], found["mean_log_temperature_error"]) == of_mean
    scaled = record.sampling_gain_at_temperature(200)
    assert (found["sampling_gain_at_temperature"], found["sampling_gain_at_temperature_error"]) == scaled
    assert "why" not in found
    assert (found["log_temperature"], found["log_temperature_error"]) == record.log_temperature(200)
    assert (found["sampling_gain"], found["sampling_gain_error"]) == record.sampling_gain(200)
    assert 0 < found["nll"] < 5
    save_posterior(q, tmp_path / "posterior")
    assert load_posterior(tmp_path / "posterior").meta.diagnostics["held_out"] == found


def test_the_best_model_comes_with_its_own_lambda_and_record(tmp_path: Path) -> None:
    settings = {
        **NOISY,
        "save_strategy": "steps",
        "save_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 8,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
    watched = Watched()
    trainer = trainer_of(tmp_path, validation=Rows(200, flipped=0.2, seed=1), callbacks=[watched], **settings)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    step = int(best.rpartition("-")[2])
    assert step < 80
    saved = torch.load(f"{best}/optimizer.pt", weights_only=True)["param_groups"][0]
    group = group_of(trainer)
    assert {name: group[name] for name in ("ess", "held_out")} == {name: saved[name] for name in ("ess", "held_out")}
    assert group["ess"] == pytest.approx(watched.ratios[step - 1] * group["auto_ess"])


def test_a_second_training_does_not_ask_rows_that_the_first_was_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched()
    trainer = trainer_of(tmp_path, callbacks=[watched], **NOISY)
    trainer.train()
    ess = group_of(trainer)["ess"]
    assert ess != group_of(trainer)["auto_ess"]
    with caplog.at_level(logging.WARNING, logger="varlora"):
        trainer.train()
    assert "were trained on by a former train()" in caplog.text
    assert group_of(trainer)["ess"] == ess
    assert sorted(watched.rows[40]) == list(range(320))


# The plain way in ---------------------------------------------------------------------------------------------


def plain(folder: Path, held_out: Any, **options: Any) -> Trainer:
    config = IVONConfig(lr=1e-2)
    return Trainer(
        model=Classifier(),
        args=arguments(folder, **{**NOISY, **options}),
        train_dataset=Rows(320, flipped=0.2),
        optimizer_cls_and_kwargs=(IVON, config.optimizer_kwargs()),
        callbacks=[VariationalCallback(held_out=held_out)],
    )


def rows_in_one_batch() -> HeldOut:
    rows = Rows(120, flipped=0.2, seed=1)
    batch = {"features": rows.features, "row": torch.arange(120), "labels": rows.labels}
    return HeldOut(
        batches=[{k: v[i : i + 40] for k, v in batch.items()} for i in (0, 40, 80)],
        logits=lambda model, batch: (model(batch["features"], batch["row"]).logits, batch["labels"]),
    )


@pytest.mark.parametrize("as_function", [False, True])
def test_the_plain_callback_steers_by_the_rows_it_is_given(tmp_path: Path, as_function: bool) -> None:
    trainer = plain(tmp_path, rows_in_one_batch if as_function else rows_in_one_batch())
    trainer.train()
    group = group_of(trainer)
    assert group["ess"] == pytest.approx(BOUNDS[0] * group["auto_ess"])
    assert (group["held_out_source"], group["held_out_rows"]) == ("validation", 120)


@pytest.mark.parametrize("held_out", [None, lambda: None])
def test_the_plain_callback_without_rows_leaves_lambda(tmp_path: Path, held_out: Any) -> None:
    trainer = plain(tmp_path, held_out, max_steps=30)
    trainer.train()
    assert group_of(trainer)["ess"] == 32_000.0
    found = posterior_of(trainer.model, trainer.optimizer).meta.diagnostics["held_out"]
    assert (found["source"], found["rows"], found["measurements"]) == (None, 0, 0)
    assert found["why"].startswith("none were given")


def test_rows_that_do_not_fit_are_found_out_before_the_training(tmp_path: Path) -> None:
    held_out = rows_in_one_batch()
    wrong = HeldOut(batches=held_out.batches, logits=lambda model, batch: (model(batch["features"]), batch["labels"]))
    trainer = plain(tmp_path, wrong)
    with pytest.raises(ValueError, match=r"TypeError.*'row'"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert isinstance(trainer.model, Classifier)
    assert not trainer.model.trained_on


# Small things -------------------------------------------------------------------------------------------------


def test_validation_rows_are_at_most_256_and_drawn_once() -> None:
    assert validation_rows(range(256), seed=0) == list(range(256))
    many = validation_rows(range(5000), seed=0)
    assert len(set(many)) == 256
    assert many == sorted(many) == validation_rows(range(5000), seed=0)
    assert max(many) > 4000
    assert many != validation_rows(range(5000), seed=1)


@pytest.mark.parametrize(("epochs", "expected"), [(0.2, 1), (1, 1), (2, 1), (3, 2), (5, 3), (10, 6), (100, 60)])
def test_rows_are_withheld_for_three_fifths_of_the_epochs(epochs: float, expected: int) -> None:
    withheld = withheld_of(range(500), epochs, seed=0)
    assert withheld is not None
    assert withheld.epochs == expected
    assert withheld_of(range(299), epochs, seed=0) is None
    assert withheld_of((row for row in range(500)), epochs, seed=0) is None


@pytest.mark.parametrize(("until", "last"), [(None, 200), (120, 120), (250, 200)])
def test_rows_are_asked_from_a_fifth_to_the_end_or_till_they_come_back(until: int | None, last: int) -> None:
    held_out = dataclasses.replace(rows_in_one_batch(), until_step=until)
    plan = plan_of(held_out, 3 * 64, TrainerState(max_steps=200, num_train_epochs=10))
    assert (min(plan.steps) > 40, plan.steps[-1]) == (True, last)


@pytest.mark.parametrize(("size", "asked"), [(32, "35"), (128, "35")])
def test_a_short_training_is_not_steered_whatever_the_evaluation_batch(
    tmp_path: Path, size: int, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    """80 steps of 8 rows: a tenth of 1920 passes is one measurement of 35 rows, at the end, for a temperature."""
    options: dict[str, Any] = {"max_steps": 80, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    trainer = trainer_of(
        tmp_path, validation=Rows(200, flipped=0.2, seed=1), per_device_eval_batch_size=size, **options
    )
    with caplog.at_level(logging.WARNING, logger="varlora"):
        trainer.train()
    assert caplog.text.count("no held-out rows steer ess") == 1
    assert f"80 training steps pays for asking {asked} held-out rows, once, when the training ends" in caplog.text
    assert isinstance(trainer.model, Classifier)
    assert len(trainer.model.predicted) == 8 + 35 * 5 <= 0.1 * 3 * 8 * 80
    group = group_of(trainer)
    assert group["ess"] == group["auto_ess"]
    found = posterior_of(trainer.model, trainer.optimizer).meta.diagnostics["held_out"]
    assert (found["source"], found["rows"], found["measurements"]) == ("validation", 200, 1)
    assert found["effective_rows"] == pytest.approx(35)
    assert "once, when the training ends" in found["why"]


def test_rows_of_the_eval_dataset_that_steer_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for held_out, level in ((None, "WARNING"), ("validation", "INFO"), ("train", None)):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="varlora"):
            trainer_of(tmp_path, validation=Rows(40, seed=1), held_out=held_out, **SHORT).train()
        told = [r.levelname for r in caplog.records if "40 rows of eval_dataset: do not report" in r.getMessage()]
        assert told == ([level] if level else [])


def test_a_run_notes_it_in_its_own_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VariationalTrainer, "words", IN_A_RUN)
    with caplog.at_level(logging.INFO, logger="varlora"):
        trainer_of(tmp_path, validation=Rows(40, seed=1), **SHORT).train()
    told = [(r.levelname, r.getMessage()) for r in caplog.records if "do not report" in r.getMessage()]
    ((level, text),) = told
    assert level == "INFO"
    assert "40 validation rows: do not report results on these rows. --held_out train withholds" in text


@pytest.mark.parametrize(("seconds", "warns"), [(30.0, True), (15.0, False)])
def test_a_share_of_the_time_far_above_the_budget_is_told_once(
    tmp_path: Path, seconds: float, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock on which the training takes 100 s, and its one measurement some of them."""
    times = iter([0.0, 60.0, 60.0 + seconds, 100.0])
    monkeypatch.setattr("varlora.ivon.steering.time.perf_counter", lambda: next(times))
    model = nn.Linear(2, 2)
    optimizer = IVON(model.parameters(), lr=0.1, ess=100.0, hess_init=1.0)
    monkeypatch.setattr(HeldOut, "measured", lambda self, model, noise, record, rows: record.without_rows())
    state = TrainerState(max_steps=80, num_train_epochs=1)
    steering = Steering(rows_in_one_batch(), NoiseController(model, optimizer), 3 * 16, state)
    state.global_step, state.epoch = steering.plan.steps[0], 0.5
    steering.after_step(model, state)
    steering.finish()
    assert ("took 30 % of the training's time (30 of 100 s)" in caplog.text) == warns


def test_a_measurement_that_finds_nothing_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    optimizer = IVON(model.parameters(), lr=0.1, ess=100.0, hess_init=1.0)
    optimizer.param_groups[0]["auto_ess"] = 100.0
    noise = NoiseController(model, optimizer)
    state = TrainerState(max_steps=24, num_train_epochs=1)
    steering = Steering(rows_in_one_batch(), noise, 3000, state)
    one = torch.ones(32)

    def words(self: HeldOut, model: nn.Module, noise: NoiseController, record: HeldOutRecord, rows: int) -> Any:
        if record.measurements:
            return record.without_rows()
        return record.with_rows(2 * one, one, gain=one, loss=one, mean_slope=one, mean_information=one)

    monkeypatch.setattr(HeldOut, "measured", words)
    ess = []
    for step in range(20, 24):
        state.global_step, state.epoch = step, 0.5
        steering.after_step(model, state)
        ess.append(optimizer.param_groups[0]["ess"])
    assert ess[0] < 100
    assert ess == [ess[0]] * 4
