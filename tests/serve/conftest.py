"""Finished runs on one base model, and what serves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving import served
from small_runs import finish_herds, save_model
from varlora.predictor.predictor import Predictor
from varlora.serve import ServeSettings, create_app
from varlora.serve.load import LoadOptions, load_models

OPTIONS = {"hess_init": 1e-2, "ess": 1e4, "variance": "hessian", "max_steps": 12, "samples": 6}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base") / "model", layers=1)


@pytest.fixture(scope="session")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose draws differ."""
    return finish_herds(tmp_path_factory.mktemp("trained"), base, **OPTIONS)


@pytest.fixture(scope="session")
def other(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run on the same base model."""
    return finish_herds(tmp_path_factory.mktemp("other"), base, **{**OPTIONS, "seed": 1, "max_steps": 6})


@pytest.fixture(scope="session")
def predictor(trained: Path) -> Predictor:
    """The run asked without a server, on a base model of its own."""
    return Predictor.from_pretrained(trained, samples=6)


@pytest.fixture(scope="session")
def address(trained: Path, other: Path) -> Iterator[str]:
    """A server of both runs."""
    models = load_models({"herds": str(trained), "other": str(other)}, LoadOptions(samples=6))
    with served(create_app(models, settings=ServeSettings(max_body_bytes=65_536, max_text_length=2000))) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30, verify=False) as made:
        yield made
