"""Metrics of resamples by counts are those of the resampled rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from varlora.metrics import METRICS, AnswerRows, Metric, evaluate_rows, evaluate_rows_with_intervals, register_metric
from varlora.metrics.evaluation import statistics_of
from varlora.metrics.resampling import counts_of, indices_of
from varlora.metrics.rows import ClassRows, CompletionRows, Rows, ScopeRows

NUMBER = 60


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def log_probs(rows: int, draws: int = 3, classes: int = 4, *, ties: bool = False) -> torch.Tensor:
    logits = 2 * torch.randn(rows, draws, classes, generator=generator(), dtype=torch.float64)
    return (logits.round() if ties else logits).log_softmax(-1)


def labels(rows: int, classes: int = 4) -> torch.Tensor:
    return torch.randint(classes, (rows,), generator=generator())


def answers() -> AnswerRows:
    given = [[str(int(a)) for a in row] for row in torch.randint(3, (NUMBER, 5), generator=generator())]
    return AnswerRows(
        given,
        [str(n % 3) for n in range(NUMBER)],
        log_likelihood=torch.randn(NUMBER, generator=generator(), dtype=torch.float64),
        finished=torch.rand(NUMBER, 5, generator=generator()) > 0.3,
        num_tokens=torch.randint(1, 9, (NUMBER, 5), generator=generator()),
    )


KINDS: dict[str, Callable[[], Rows]] = {
    "classes": lambda: ClassRows(log_probs(NUMBER), labels(NUMBER)),
    "classes, tied": lambda: ClassRows(log_probs(NUMBER, 1, ties=True), labels(NUMBER)),
    "forty classes": lambda: ClassRows(log_probs(NUMBER, 2, 40), labels(NUMBER, 40)),
    "all right": lambda: ClassRows(log_probs(NUMBER), log_probs(NUMBER).exp().mean(1).argmax(-1)),
    "one row": lambda: ClassRows(log_probs(1), labels(1)),
    "completions": lambda: CompletionRows(log_probs(NUMBER)[:, :, 0] * 20, 1 + labels(NUMBER)),
    "final answers": answers,
    "out of scope": lambda: ScopeRows(log_probs(NUMBER // 2, ties=True), log_probs(NUMBER // 2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_by_counts_is_that_of_the_drawn_rows(kind: str) -> None:
    rows = KINDS[kind]()
    indices = torch.randint(rows.number, (2, 50, rows.number), generator=generator())
    indices[0, 0] = torch.arange(rows.number)
    indices[0, 1] = 0
    found = statistics_of(rows)(counts_of(indices))
    checked = 0
    for name, metric in METRICS.items():
        if metric.kind != rows.kind:
            continue
        expected = metric.function(rows.at(indices))
        assert (expected is None) == (name not in found)
        if expected is not None:
            expected = expected.double().mean(-1) if metric.per_row else expected
            torch.testing.assert_close(found[name], expected, rtol=1e-11, atol=1e-13, equal_nan=True, msg=name)
            checked += 1
    assert checked >= 3


def test_a_row_that_is_infinite_counts_where_it_is_drawn() -> None:
    certain = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    rows = ClassRows(certain, torch.tensor([1, 1]))
    nll = statistics_of(rows, ["nll"])(torch.tensor([[0.0, 2.0], [1.0, 1.0]], dtype=torch.float64))["nll"]
    assert nll.tolist() == [pytest.approx(0.6931472), float("inf")]


def test_counts_and_indices_are_the_same_resample() -> None:
    indices = torch.randint(9, (3, 5, 9), generator=generator())
    assert torch.equal(indices_of(counts_of(indices)), indices.sort(dim=-1).values)
    assert torch.equal(counts_of(indices).sum(-1), torch.full((3, 5), 9.0, dtype=torch.float64))


def test_a_metric_without_counts_has_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def median_confidence(rows: ClassRows) -> torch.Tensor:
        return rows.confidence.median(-1).values

    monkeypatch.setattr(METRICS, "_added", dict(METRICS.imported))
    register_metric(Metric(name="median_confidence", function=median_confidence, shown="nowhere"))
    rows = ClassRows(log_probs(NUMBER), labels(NUMBER))
    interval = evaluate_rows_with_intervals(rows, resamples=40)["median_confidence"]
    assert interval.estimate == evaluate_rows(rows)["median_confidence"]
    indices = torch.randint(NUMBER, (40, NUMBER), generator=torch.Generator().manual_seed(0))
    values = sorted(float(rows.confidence[i].median()) for i in indices)
    assert (interval.low, interval.high) == (values[0], values[-1])
