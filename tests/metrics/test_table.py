"""The one table of metrics, and a metric that somebody else brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from varlora.metrics import (
    METRICS,
    ClassRows,
    Metric,
    compare,
    evaluate,
    evaluate_with_intervals,
    metric_named,
    register_metric,
    shown_metrics,
)
from varlora.runs.config import RunConfig
from varlora.runs.run import run


def probability(rows: ClassRows) -> torch.Tensor:
    """Of the right answer."""
    return rows.probs.gather(-1, rows.labels.unsqueeze(-1)).squeeze(-1)


PROBS = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
LABELS = torch.tensor([0, 1, 0])


@pytest.fixture(autouse=True)
def _forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(METRICS, "_added", dict(METRICS.imported))


@pytest.fixture
def added() -> Metric:
    return register_metric(
        Metric(
            name="right",
            function=probability,
            per_row=True,
            title="p(right)",
            better="higher",
            meaning="the probability of the right answer",
        )
    )


def test_a_registered_metric_is_evaluated_with_an_interval_and_compared(added: Metric) -> None:
    assert evaluate(PROBS, LABELS)["right"] == 0.5
    interval = evaluate_with_intervals(PROBS, LABELS, resamples=100)["right"]
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.25, 0.75)
    assert compare(PROBS, PROBS.flip(-1), LABELS, resamples=40)["right"].estimate == 0.0
    assert shown_metrics() == ("accuracy", "nll", "ece_15", "brier", "right")
    assert added.heading == "p(right) ↑"


def test_a_metric_of_every_resample_is_the_metric_of_the_resample(added: Metric) -> None:
    """Whether it is a mean over rows or not, the interval is of the same numbers."""
    whole = Metric(name="whole", function=lambda rows: probability(rows).double().mean(-1), shown="nowhere")
    register_metric(whole)
    found = evaluate_with_intervals(PROBS, LABELS, resamples=100)
    assert found["whole"] == found[added.name]


def test_a_metric_that_is_not_defined_is_left_out() -> None:
    assert "mutual_information" not in evaluate(PROBS, LABELS)
    assert "mutual_information" in evaluate(PROBS.log().unsqueeze(1), LABELS)


@pytest.mark.parametrize("per_row", [True, False])
def test_numbers_of_a_wrong_shape_are_refused(per_row: bool) -> None:
    register_metric(Metric(name="wrong", function=lambda rows: rows.probs, per_row=per_row, shown="nowhere"))
    with pytest.raises(ValueError, match=r"'wrong' gives numbers of shape \(3, 2\)"):
        evaluate(PROBS, LABELS)


def test_a_metric_that_cannot_be_computed_is_known_before_a_run_begins(tmp_path: Path) -> None:
    register_metric(Metric(name="wrong", function=lambda rows: rows.probs, shown="nowhere"))
    config = RunConfig(model_name_or_path="nowhere", train_file="none.jsonl", output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="the metric 'wrong' gives numbers of shape"):
        run(config)


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="of its own"):
        register_metric(Metric(name="nll", function=probability, meaning="another"))
    with pytest.raises(ValueError, match="needs a name, and a meaning"):
        Metric(name="silent", function=probability)
    with pytest.raises(ValueError, match=r"share_of is 1\.5"):
        Metric(name="more", function=probability, shown="nowhere", share_of=1.5)
    with pytest.raises(ValueError, match=r"no metric 'ece_51'; did you mean 'ece_15'\?"):
        metric_named("ece_51")


def test_every_metric_of_the_report_has_words_and_a_direction() -> None:
    kinds = ("classes", "completions", "final_answers", "out_of_scope")
    for name in shown_metrics(*kinds):
        metric = metric_named(name)
        assert metric.better is not None
        assert metric.meaning[0].islower()
        assert not metric.meaning.endswith(".")


def test_rows_are_taken_as_the_whole_is() -> None:
    rows, indices = ClassRows(PROBS, LABELS), torch.tensor([[2, 0, 0], [1, 1, 2]])
    taken = rows.at(indices)
    for k in range(2):
        again = ClassRows(PROBS[indices[k]], LABELS[indices[k]])
        for name in ("probs", "labels", "confidence", "correct", "risk"):
            assert torch.equal(getattr(taken, name)[k], getattr(again, name))
    twice = rows.at(torch.tensor([2, 1, 0])).at(torch.tensor([0, 0, 1]))
    assert torch.equal(twice.confidence, rows.confidence[[2, 2, 1]])
