"""Made-up predictions, and what was found with them."""

from __future__ import annotations

import pytest

from report.made_up import made_up_rows, made_up_study
from varlora.report import Comparison
from varlora.report.study import Study


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return Comparison(task="wants", rows=made_up_rows(), resamples=200)


@pytest.fixture(scope="session")
def hostile() -> Comparison:
    """Names that try to be markup, mathematics and private labels."""
    names = ('<script>alert("1")</script>', "_$a_b$ & co | *x*", "]]></style></svg><b>")
    return Comparison(task="<i>task</i>", rows=made_up_rows(names), reference=names[0], resamples=40)


@pytest.fixture(scope="session")
def study(comparison: Comparison) -> Study:
    return made_up_study(comparison)
