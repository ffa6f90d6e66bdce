"""A finished run of an encoder on herds, trained once for each file of tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from small_runs import finish_herds, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_herds(tmp_path_factory.mktemp("trained"), model)


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
