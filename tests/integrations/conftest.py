"""One run for all tests of the harness."""

from __future__ import annotations

from typing import Any

import pytest

from integrations.harness import Harness, loaded, make_harness


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """The run and the task."""
    return make_harness(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="session")
def setting(harness: Harness) -> Any:
    """The run's own model and rows."""
    return loaded(harness.run)


@pytest.fixture(scope="session")
def lm(harness: Harness) -> Any:
    """The run as the harness's model."""
    from varlora.integrations.lm_eval import PosteriorLM

    return PosteriorLM(str(harness.run), batch_size=7)
