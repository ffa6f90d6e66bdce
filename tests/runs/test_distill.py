"""One adapter that answers like the average over draws, and when that is no gain."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from small_runs import films, finish_herds, herds, save_model, write_rows
from varlora import PointMass, Predictor, load_posterior
from varlora.posterior import PredictionConfig
from varlora.runs.distill import DISTILLED, Distillation, NoGainError, distill
from varlora.runs.folder import read_run
from varlora.runs.folder_config import FolderConfig
from varlora.runs.soft_targets import SoftTargetFit, SoftTargetOptions

OPTIONS = SoftTargetOptions(learning_rates=(1e-2,), num_train_epochs=12)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose draws differ, and whose average is far from its mean."""
    folder = tmp_path_factory.mktemp("noisy")
    options = {"hess_init": 1e-2, "ess": 1e4, "variance": "hessian", "max_steps": 25, "samples": 6}
    return finish_herds(folder, save_model(folder / "model", layers=1), **options)


@pytest.fixture(scope="module")
def distilled(noisy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Distillation, Path]:
    folder = tmp_path_factory.mktemp("distilled")
    more = write_rows(folder / "more.jsonl", [{"text": row["text"]} for row in [*herds(24, offset=100), *films(4)]])
    result = distill(
        read_run(noisy), folder / "run", unlabeled_file=more, samples=6, options=OPTIONS, keep_without_gain=True
    )
    return result, folder / "run"


def test_it_comes_closer_to_the_average_than_the_mean(distilled: tuple[Distillation, Path]) -> None:
    result, _ = distilled
    measured = result.measured

    assert list(measured) == ["mean", "mean + T", "average", "distilled"]
    assert measured["average"]["kl"] == pytest.approx(0, abs=1e-9)
    assert measured["distilled"]["kl"] < 0.5 * measured["mean"]["kl"]
    assert result.fit.divergence < result.fit.start
    assert 0 < result.unlabeled <= 24, "rows that the run has itself are left out"
    assert result.fit.rows + result.fit.kept == 48 + result.unlabeled


def test_it_is_a_run_that_is_read_everywhere(distilled: tuple[Distillation, Path], noisy: Path, tmp_path: Path) -> None:
    result, folder = distilled
    run = read_run(folder)

    assert isinstance(run.posterior, PointMass)
    assert run.posterior.meta.history[-1]["op"] == "distill"
    assert run.facts["derived_from"] == [str(noisy)]
    assert run.posterior.meta.logit_temperature_of("mean") == 1
    for name in ("base_loading", "base_fingerprint", "task", "readout"):
        assert getattr(run.posterior.meta, name) == getattr(load_posterior(noisy).meta, name), name
    kept = json.loads((folder / DISTILLED).read_text())
    assert kept["measured"]["distilled"]["nll"] == pytest.approx(result.measured["distilled"]["nll"])
    assert kept["gain"] == result.gain
    predictor = Predictor.from_pretrained(folder)
    prediction = predictor.prediction(herds(48), labelled=True)
    assert prediction.num_draws == 1
    nll = -prediction.log_probs[torch.arange(48), 0, prediction.labels].mean()
    assert float(nll) == pytest.approx(result.measured["distilled"]["nll"], abs=1e-5)
    assert read_run(folder).health().method == "distill"


def test_no_gain_writes_nothing(noisy: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in noisy.rglob("*")}
    options = SoftTargetOptions(learning_rates=(1e-9,), num_train_epochs=1)
    with pytest.raises(NoGainError, match="No gain") as refused:
        distill(read_run(noisy), tmp_path / "out", samples=6, options=options)
    assert refused.value.distillation.fit.rows > 0
    assert not (tmp_path / "out").exists()
    assert {path: path.stat().st_mtime_ns for path in noisy.rglob("*")} == before


def result_of(**values: Any) -> Distillation:
    fit = SoftTargetFit(weights={}, learning_rate=None, epoch=0, divergence=0.1, start=0.1, rows=8, kept=2)
    given = {"teacher": "", "fit": fit, "unlabeled": 0, "measured": {}, "rows": 100, "needed": 1.5, **values}
    return Distillation(**given)


def test_a_gain_is_one_that_the_rows_show() -> None:
    assert result_of(difference=-0.1, error=0.02).gain
    assert "Distilling pays: NLL -0.1000 ± 0.0300" in result_of(difference=-0.1, error=0.02).sentence
    small = result_of(difference=-0.004, error=0.0001)
    assert not small.gain, "surely too small to be worth a training"
    assert small.rows_needed is None
    unsure = result_of(difference=-0.02, error=0.04)
    assert not unsure.gain
    assert unsure.rows_needed == 900
    assert "About 900 rows would show" in unsure.sentence
    assert not result_of(difference=0.1, error=0.01).gain


def test_what_has_no_average_is_refused(noisy: Path, tmp_path: Path) -> None:
    run = read_run(noisy)
    with pytest.raises(ValueError, match="no average to distil"):
        distill(run, tmp_path / "out", samples=0)
    meta = dataclasses.replace(run.posterior.meta, tuned=PredictionConfig(mode="mean"))
    point = dataclasses.replace(run, posterior=PointMass(mean=run.posterior.point, meta=meta))
    with pytest.raises(ValueError, match="no average to distil"):
        distill(point, tmp_path / "out")
    texts = dataclasses.replace(run, facts={**run.facts, "task": {**run.facts["task"], "kind": "completion"}})
    with pytest.raises(ValueError, match="writes texts"):
        distill(texts, tmp_path / "out")
    elsewhere = dataclasses.replace(run, config=FolderConfig(model_name_or_path="m", output_dir=str(noisy)))
    with pytest.raises(ValueError, match="no training and validation rows of its own"):
        distill(elsewhere, tmp_path / "out")
    assert load_posterior(noisy).meta == run.posterior.meta
