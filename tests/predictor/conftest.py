"""A run whose draws differ, trained once, and its predictor."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_runs import finish_herds, save_model
from varlora import Predictor


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    options = {"hess_init": 1e-2, "ess": 1e4, "variance": "hessian", "max_steps": 12, "samples": 6}
    return finish_herds(folder, save_model(folder / "model", layers=1), per_device_eval_batch_size=3, **options)


@pytest.fixture(scope="session")
def predictor(trained: Path) -> Predictor:
    return Predictor.from_pretrained(trained, samples=6)
