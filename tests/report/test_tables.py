import io
from dataclasses import replace

import torch
from rich.console import Console

from varlora.metrics import HEADLINE, METRICS
from varlora.report import Comparison, Row, differences_table, results_table


def row(method: str, seed: int, right: list[float]) -> Row:
    """Two classes; `right` are the probabilities of the label."""
    p = torch.tensor(right, dtype=torch.float64)
    log_probs = torch.stack([p, 1 - p], dim=-1).log()
    labels = torch.zeros(len(right), dtype=torch.int64)
    return Row(method=method, seed=seed, split="test", log_probs=log_probs, labels=labels)


def small() -> Comparison:
    """All examples of a run are alike, so the intervals are points and the table can be written by hand."""
    return Comparison(
        task="t",
        rows=[
            row("AdamW", 0, [0.75] * 4),
            row("AdamW", 1, [0.25] * 4),
            row("IVON | x", 0, [0.75] * 4),
            row("IVON | x", 1, [0.75] * 4),
        ],
        metrics=("accuracy", "brier"),
        resamples=40,
    )


def test_markdown_is_exact() -> None:
    comparison = small()
    results = results_table(comparison, metrics=comparison.metrics).to_markdown()
    assert (
        results
        == """\
| Method | Accuracy % ↑ | Brier ↓ |
|:--|--:|--:|
| AdamW | 50.0 ± 50.0<br>6.8 to 93.2 | 0.625 ± 0.500<br>0.625 to 0.625 |
| IVON \\| x | **100.0 ± 0.0**<br>39.8 to 100.0 | **0.125 ± 0.000**<br>0.125 to 0.125 |

test: 4 examples, 2 seeds. Mean ± standard error over seeds, and the 95 % bootstrap interval over examples. The \
best mean of a column stands out, whether or not its lead is clear."""
    )
    # Two seeds that disagree (one gains, one does not) are not called clear, whatever the interval.
    differences = differences_table(comparison, metrics=comparison.metrics).to_markdown().splitlines()
    assert differences[:3] == [
        "| Against AdamW | Accuracy % ↑ | Brier ↓ |",
        "|:--|--:|--:|",
        "| IVON \\| x | +50.0 ± 50.0 unclear<br>−53.5 to +93.2 examples<br>−585.3 to +685.3 seeds "
        "| −0.500 ± 0.500 unclear<br>−0.500 to −0.500 examples<br>−6.853 to +5.853 seeds |",
    ]


def test_the_best_stands_out_even_without_a_clear_lead(comparison: Comparison) -> None:
    for split in comparison.splits:
        table = results_table(comparison, split=split)
        for column, metric in enumerate(comparison.metrics):
            means = {name: s.metrics[metric].mean for name, s in comparison.summary(split).items()}
            best = (max if METRICS[metric].better == "higher" else min)(means, key=means.__getitem__)
            assert best in [name for name, cells in table.rows if cells[column].strong]


def test_eighty_columns_are_enough(comparison: Comparison) -> None:
    for table in (
        results_table(comparison, metrics=HEADLINE, times=True),
        differences_table(comparison, metrics=HEADLINE),
    ):
        console = Console(file=io.StringIO(), width=80, force_terminal=False)
        console.print(table.to_rich())
        text = console.file.getvalue()
        assert "…" not in text
        for name, cells in table.rows:
            assert name in text
            for cell in cells:
                assert all(line in text for line in cell.texts)


def test_numbers_keep_their_exact_values(comparison: Comparison) -> None:
    summary = comparison.summary("test")["IVON, 10 samples"]
    cells = dict(results_table(comparison).rows)["IVON, 10 samples"]
    estimate = summary.metrics["accuracy"]
    values = [part.value for line in cells[0].lines for part in line if not isinstance(part, str)]
    assert values == [estimate.mean, estimate.se, estimate.low, estimate.high]


def test_differences_that_round_to_nothing_have_no_sign() -> None:
    assert METRICS["accuracy"].show_difference(-0.0001) == "0.0"
    assert METRICS["nll"].show_difference(float("inf")) == "∞"
    assert METRICS["nll"].show(float("nan")) == "–"


def test_temperatures_that_divided_the_logits_are_in_the_caption(comparison: Comparison) -> None:
    assert "T, by which" not in results_table(comparison).caption
    divided = [
        replace(row, logit_temperature=1.2 + row.seed / 1000) if row.method.startswith("IVON") else row
        for row in comparison.rows
    ]
    caption = results_table(Comparison(task="t", rows=divided, resamples=40)).caption
    assert caption.endswith("T, by which logits were divided: IVON, 10 samples 1.22 to 1.24; 1 for the others.")
