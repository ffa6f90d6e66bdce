"""How far a training went, by its log."""

from __future__ import annotations

import pytest

from varlora.report.course import course_of


@pytest.mark.parametrize(
    ("losses", "falling"),
    [([0.5] * 6, False), ([-0.9] * 6, False), ([0.0] * 6, False), ([-0.5, -0.5, -0.9, -0.9, -1.2, -1.2], True)],
)
def test_a_loss_falls_by_its_size_whatever_its_sign(losses: list[float], falling: bool) -> None:
    """Densities of whole numbers and rewards give losses below 0; one that stays is not falling."""
    assert course_of([{"epoch": 0.5 * k, "loss": loss} for k, loss in enumerate(losses)]).falling is falling
