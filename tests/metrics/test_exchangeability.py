"""The test martingale and the two-sample test: false alarms at their rate, other rows found, MAPIE's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from varlora.metrics.exchangeability import BETS, JUMP, ConformalTestMartingale, check_exchangeability


def test_false_alarms_have_their_rate_however_long_one_looks() -> None:
    """10 000 martingales of 1000 uniform p-values: the maximum reaches 1/α in a share of at most α."""
    p_values = np.random.default_rng(0).uniform(size=(1000, 10_000))
    bets = np.array(BETS)[:, None]
    wealth = np.full((3, 10_000), 1 / 3)
    highest = np.ones(10_000)
    means = []
    for row in p_values:
        wealth = ((1 - JUMP) * wealth + JUMP * wealth.sum(0) / 3) * (1 + bets * (row - 0.5))
        highest = np.maximum(highest, wealth.sum(0))
        means.append(float(wealth.sum(0).mean()))
    for alpha in (0.1, 0.05, 0.01):
        share = float((highest >= 1 / alpha).mean())
        assert alpha / 20 < share <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 10_000)
    assert means[:20] == pytest.approx([1] * 20, abs=0.05)  # a martingale's mean stays; later rare ones carry it


@pytest.mark.parametrize("ties", [False, True])
def test_p_values_are_uniform_and_the_class_bets_on_them(ties: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    alarms, p_values = 0, []

    class Listening(ConformalTestMartingale):
        def bet(self, p_value: float) -> None:
            p_values.append(p_value)
            super().bet(p_value)

    for seed in range(150):
        scores = torch.rand(130, generator=generator, dtype=torch.float64)
        if ties:
            scores = (3 * scores).round()
        found = Listening(scores[:30], alpha=0.1, seed=seed).update(scores[30:])
        alarms += found.alarm_at is not None
    assert alarms / 150 <= 0.1 + 3 * math.sqrt(0.09 / 150)
    counts = np.histogram(p_values, bins=10, range=(0, 1))[0]
    assert float(np.abs(counts / len(p_values) - 0.1).max()) < 0.0125  # five standard errors


def test_both_together_call_out_falsely_at_their_rate() -> None:
    generator = torch.Generator().manual_seed(1)
    alarms = 0
    for seed in range(400):
        scores = torch.rand(150, generator=generator, dtype=torch.float64)
        alarms += not check_exchangeability(scores[:100], scores[100:], alpha=0.1, seed=seed).exchangeable
    assert 0.01 < alarms / 400 <= 0.1 + 3 * math.sqrt(0.09 / 400)


def test_other_rows_are_found_from_the_start_and_from_the_middle() -> None:
    generator = torch.Generator().manual_seed(2)

    def sure(rows: int, harder: float) -> torch.Tensor:
        return (2 - harder + torch.randn(rows, generator=generator, dtype=torch.float64)).sigmoid()

    found, late, start = [], [], []
    for seed in range(50):
        reference = sure(300, 0)
        found.append(not check_exchangeability(reference, sure(100, 1.0), seed=seed).exchangeable)
        mixed = torch.cat([sure(300, 0), sure(150, 1.5)])
        check = check_exchangeability(reference, mixed, seed=seed)
        late.append(check.alarm_at is not None and check.alarm_at > 300)
        start.append(check.alarm_at is not None and check.alarm_at <= 300)
    assert sum(found) == 50
    assert sum(late) >= 48
    assert sum(start) <= 2


def test_it_is_mapies_martingale() -> None:
    testing = pytest.importorskip("mapie.exchangeability_testing")
    theirs = testing.OnlineMartingaleTest(task="classification", jump_size=JUMP)
    ours = ConformalTestMartingale([0.5])
    for p_value in np.random.default_rng(0).uniform(0, 0.6, size=200):
        ours.bet(float(p_value))
        assert ours.value == pytest.approx(theirs.update_simple_jumper_martingale(float(p_value)), rel=1e-12)
    history = np.array([0.2, 0.5, 0.5, 0.9])
    theirs.rng = np.random.default_rng(3)
    ours = ConformalTestMartingale(history.tolist(), seed=3)
    heard: list[float] = []
    ours.bet = heard.append  # type: ignore[method-assign]
    ours.update([0.5])
    assert heard == [pytest.approx(theirs.compute_p_value(0.5, history))]


def test_a_stream_in_parts_is_the_stream() -> None:
    scores = torch.rand(60, generator=torch.Generator().manual_seed(0))
    whole = ConformalTestMartingale(scores[:20]).update(scores[20:])
    parts = ConformalTestMartingale(scores[:20]).update(scores[20:30]).update([]).update(scores[30:])
    assert (whole.value, whole.highest, whole.rows) == (parts.value, parts.highest, 40)


def test_edges() -> None:
    same = check_exchangeability([0.5], [0.5])
    assert same.exchangeable
    assert same.p_value == 1
    assert check_exchangeability([0.5] * 50, [0.5] * 50).exchangeable
    gone = check_exchangeability([0.9] * 50, [0.4] * 50)
    assert not gone.exchangeable
    assert "a false alarm has a chance of at most 1 %" in gone.sentence
    assert "that is no proof" in same.sentence
    for reference, new, alpha, message in (
        ([], [0.5], 0.01, "the reference scores have shape"),
        ([0.5], [], 0.01, "the new scores have shape"),
        ([0.5], [math.nan], 0.01, "1 of them NaN"),
        ([0.5], [0.5], 0.0, "alpha is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            check_exchangeability(reference, new, alpha=alpha)
