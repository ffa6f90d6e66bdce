"""Which folders hold a posterior of a causal language model, and what they record."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from small_runs import config, films, save_model, write_rows
from varlora.integrations.source import read_source
from varlora.posterior import PointMass, PosteriorMeta, PredictionConfig
from varlora.posterior.folder import load_posterior, save_posterior
from varlora.prediction.prediction_setup import SAMPLES
from varlora.readout.readout import ClassHead
from varlora.runs.run import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    options = {"method": "adamw", "max_steps": 2, "seed": 5, "samples": 3, "dtype": "float32"}
    settings = config(folder, save_model(folder / "model"), **options)
    run(settings, progress=False)
    return folder / "run"


def saved(finished: Path, folder: Path, **meta: Any) -> Path:
    """The run's posterior, alone in a folder, with another meta."""
    q = load_posterior(finished)
    return save_posterior(PointMass(mean=q.point, meta=dataclasses.replace(q.meta, **meta)), folder)


def test_a_run_says_all(finished: Path) -> None:
    source = read_source(str(finished))

    assert source.folder == finished
    assert source.base == str(finished.parent / "model")
    assert (source.revision, source.samples, source.seed) == ("main", 3, 5)
    assert source.dtype == "float32"


def test_a_posterior_alone_says_its_base_model(finished: Path, tmp_path: Path) -> None:
    source = read_source(str(saved(finished, tmp_path / "q", base_revision="abc", base_loading=None)))

    assert source.base == str(finished.parent / "model")
    assert (source.revision, source.dtype, source.samples, source.seed) == ("abc", "auto", SAMPLES, 0)


def test_a_posterior_alone_says_how_its_base_model_was_loaded(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(finished, tmp_path / "q", base_loading={"dtype": "bfloat16", "quantization": "8bit"})
    with caplog.at_level(logging.WARNING, logger="varlora"):
        assert read_source(str(folder)).dtype == "bfloat16"
    assert "was trained over a base model in 8bit; give load_in_8bit=True" in caplog.text


def test_what_was_tuned_can_be_left_aside(finished: Path, tmp_path: Path) -> None:
    chosen = PredictionConfig(mode="mean", temperature=0, logit_temperature=1.5)
    folder = str(saved(finished, tmp_path / "q", tuned=chosen))

    assert read_source(folder).q.meta.tuned == chosen
    assert read_source(folder, untuned=True).q.meta.tuned is None


def test_another_base_model_is_said(finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="varlora"):
        read_source(str(finished), f"{finished.parent}/./model")
        assert caplog.text == ""
        source = read_source(str(saved(finished, tmp_path / "q", base_revision="abc")), "some/hub-name")

    assert (source.base, source.revision) == ("some/hub-name", "main")
    assert "it is used with some/hub-name" in caplog.text


def test_folders_that_hold_no_such_posterior(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plain = save_posterior(PointMass(mean={"w": torch.ones(1)}, meta=PosteriorMeta()), tmp_path / "plain")
    readout = ClassHead(classes=("negative", "positive")).to_dict()
    head = saved(finished, tmp_path / "head", readout=readout)
    adapter = {**(load_posterior(finished).meta.adapter_config or {}), "task_type": "SEQ_CLS"}
    typed = saved(finished, tmp_path / "typed", readout=None, adapter_config=adapter)
    nowhere = saved(finished, tmp_path / "nowhere", base_model=None)
    moved = saved(finished, tmp_path / "moved", base_model=str(tmp_path / "gone"))
    refusals = {
        tmp_path / "none": "is no folder. Give the output_dir",
        tmp_path / "empty": "holds no adapter and no posterior",
        plain: "weights of a plain module",
        head: "classification head.*varlora eval",
        typed: "classification head",
        nowhere: "does not say its base model; give it as pretrained=BASE",
        moved: "there is no base model folder .*gone; say where it is now",
    }

    for folder, message in refusals.items():
        with pytest.raises(ValueError, match=message):
            read_source(str(folder))
    assert read_source(str(nowhere), str(finished.parent / "model")).base == str(finished.parent / "model")


def test_a_run_with_a_classification_head_is_refused(tmp_path: Path) -> None:
    from tiny_runs import save_encoder

    settings = config(tmp_path, save_encoder(tmp_path / "encoder"), method="adamw", max_steps=1)
    run(dataclasses.replace(settings, test_file=write_rows(tmp_path / "few.jsonl", films(4))), progress=False)

    with pytest.raises(ValueError, match="classification head"):
        read_source(str(tmp_path / "run"))
