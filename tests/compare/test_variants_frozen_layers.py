"""Variants of runs with cached frozen layers: the whole model's predictions, beside those of the cached one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.plans import variant_of
from small_runs import finish_herds
from tiny_runs import save_encoder
from varlora.compare import variants as making
from varlora.compare.variant import Variant
from varlora.compare.variant_files import is_complete, load_variant, pruned_fraction, read_tuned
from varlora.compare.variants import ensure_variants
from varlora.posterior import Posterior
from varlora.posterior.ops import prune, temper
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import choose_config
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.predict import predict_split
from varlora.runs.setting import reload_setting
from varlora.runs.space import Grid
from varlora.runs.tune import tune, tuning_of

UPPER = r".*layer\.1\..*(query|value)"
METHODS = ("adamw", "ivon", "laplace", "swag", "ensemble")
PRUNED = variant_of(mode="mean", prune=0.5, prune_by="magnitude")
MORE_DRAWS, WARMER = variant_of(samples=6), variant_of(temperature=4)
LINEARISED = variant_of(mode="linearised", temperature=4)
TUNED = variant_of(tune=True)
GRID = Grid(temperatures=(0.0, 1.0, 4.0), samples=(4,), fractions=())
CHOSEN = variant_of(mode="mean", prune="validation", prune_by="magnitude", logit_temperature="validation")


@pytest.fixture(scope="module", params=METHODS)
def cached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an encoder whose lower layer was computed once for each row."""
    folder = tmp_path_factory.mktemp(request.param)
    options: dict[str, Any] = {"ess": 100.0} if request.param == "ivon" else {}
    return finish_herds(
        folder,
        save_encoder(folder / "encoder"),
        method=request.param,
        max_steps=8,
        lora_target_modules=UPPER,
        cache_frozen_layers=True,
        **options,
    )


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is tried, here as by `tune`: each candidate costs its predictions."""
    monkeypatch.setattr(making, "tuning_of", lambda run, _, **given: tuning_of(run, GRID, **given))
    monkeypatch.setattr(making, "FRACTIONS", (0.1, 0.5, 0.9))


def predicted(run: RunFolder, q: Posterior, split: str, variant: Variant) -> Prediction:
    setting = reload_setting(run)
    found = predict_split(setting, q, split, dataclasses.replace(variant.config, prune=0, temperature=1))
    assert isinstance(found, Prediction)
    return found


@pytest.mark.parametrize("cached", ["adamw", "ivon", "laplace"], indirect=True)
def test_a_run_is_read_tuned_varlora_tune_does_it(cached: Path, tmp_path: Path) -> None:
    ensure_variants(cached, [TUNED])
    run = read_run(cached)
    tuning = tune(shutil.copytree(cached, tmp_path / "run"), GRID)
    assert read_tuned(run, TUNED) == tuning.tuned
    for split in ("validation", "test"):
        kept = load_variant(run, TUNED, split)
        if tuning.tuned is None:
            assert torch.equal(kept.log_probs, run.prediction(split, kept.mode).log_probs)
            continue
        setting = reload_setting(run)
        q = read_run(tmp_path / "run").posterior
        whole = predict_split(setting, q, split, choose_config(q, None, run.config.samples))
        assert isinstance(whole, Prediction)
        assert torch.equal(kept.log_probs, whole.log_probs)


def test_variants_are_predicted_with_the_whole_model(cached: Path) -> None:
    before = read_run(cached)
    method, q = before.config.method, before.posterior
    expected = {PRUNED: prune(q, 0.5, by="magnitude")}
    if method in ("ivon", "swag"):
        expected |= {WARMER: temper(q, 4), MORE_DRAWS: q}
    if method == "laplace":
        expected[LINEARISED] = temper(q, 4)
    wanted = [*expected, CHOSEN]

    ensure_variants(cached, wanted)

    assert is_complete(cached, wanted)
    run = read_run(cached)
    for variant, posterior in expected.items():
        for split in ("validation", "test"):
            whole = predicted(run, posterior, split, variant)
            assert torch.equal(load_variant(run, variant, split).log_probs, whole.log_probs)
    assert 0 <= pruned_fraction(run, CHOSEN) < 1
    assert load_variant(run, CHOSEN, "test").log_probs.isfinite().all()


def test_the_cached_models_own_predictions_are_the_whole_models(cached: Path) -> None:
    run = read_run(cached)
    for mode in ("mean", "samples"):
        if (run.path / "predictions" / f"test.{mode}.parquet").is_file():
            whole = predicted(run, run.posterior, "test", variant_of(mode=mode))
            torch.testing.assert_close(whole.log_probs, run.prediction("test", mode).log_probs, rtol=0, atol=1e-5)
