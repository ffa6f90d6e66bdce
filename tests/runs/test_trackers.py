"""Trackers that a training is reported to."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from small_runs import config, finish_herds, save_model
from varlora.runs.config import RunConfig
from varlora.runs.run import run


def settings(**options: Any) -> RunConfig:
    return RunConfig(model_name_or_path="m", task="arc_easy", output_dir="o", **options)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that TensorBoard has seen, in which held-out rows steered λ."""
    folder = tmp_path_factory.mktemp("reported")
    model = save_model(folder / "model", layers=1)
    return finish_herds(
        folder, model, report_to="tensorboard", max_steps=50, held_out="validation", per_device_train_batch_size=48
    )


def test_tensorboard_has_the_numbers_of_the_log(reported: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (file,) = (reported / "tensorboard").rglob("events.out.tfevents.*")
    events = event_accumulator.EventAccumulator(str(file))
    events.Reload()
    seen = {tag.removeprefix("train/"): events.Scalars(tag) for tag in events.Tags()["scalars"]}
    log = [json.loads(line) for line in (reported / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if "loss" in entry]

    assert len(steps) == 5
    for name in ("loss", "learning_rate", "noise_std", "ess"):
        assert [event.step for event in seen[name]] == [entry["step"] for entry in steps]
        assert [event.value for event in seen[name]] == pytest.approx([entry[name] for entry in steps], rel=1e-6)
    assert json.loads(events.Tensors("args/text_summary")[0].tensor_proto.string_val[0])["run_name"] == "run"
    assert not Path(f"{reported}.checkpoints").exists()


def test_where_it_is_reported_is_no_setting_of_the_run() -> None:
    assert settings(report_to="wandb", run_name="a").fingerprint == settings().fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"report_to": "tensorbord"}, "report_to is 'tensorbord'; it must be .* did you mean 'tensorboard'"),
        ({"report_to": "none,wandb"}, "report_to is 'none,wandb'"),
        ({"run_name": "a"}, "run_name is 'a', which has no effect without report_to"),
    ],
)
def test_what_is_no_tracker_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**given)


def test_one_that_is_not_installed_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else found(name))
    with pytest.raises(ValueError, match=r"trackio is not installed: pip install trackio\."):
        run(config(tmp_path, "no-such-model", report_to="trackio"))
