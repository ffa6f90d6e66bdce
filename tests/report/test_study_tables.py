from dataclasses import replace

import pytest

from varlora.metrics import METRICS
from varlora.report import Comparison, Table
from varlora.report.seeds import over_seeds
from varlora.report.statistics import tallies
from varlora.report.study import Block, Cost, Frontier, FrontierPoint, Study
from varlora.report.study_tables import (
    costs_table,
    detection_table,
    frontier_table,
    overview_table,
    record_table,
    study_splits,
)
from varlora.report.tables import Cell, differences_table


def values(cell: Cell) -> list[float]:
    return [part.value for line in cell.lines for part in line if not isinstance(part, str)]


def cells(table: Table) -> dict[str, dict[str, Cell]]:
    return {name: dict(zip(table.headings[1:], row, strict=True)) for name, row in table.rows}


def test_the_overview_has_a_column_for_each_task_and_no_average(study: Study) -> None:
    table = overview_table(study, split="test", metric="nll")
    assert table.headings == ("NLL ↓", "first", "second")
    for block in study.blocks[:2]:
        assert block.comparison is not None
        for method, summary in block.comparison.summary("test").items():
            cell = cells(table)[method][block.task]
            estimate = summary.metrics["nll"]
            assert values(cell)[:2] == [estimate.mean, estimate.se]
            if method == study.reference:
                assert (len(cell.lines), cell.verdict) == (1, "")
            else:
                assert values(cell)[2] == summary.differences["nll"].value
                assert cell.verdict_line == 1
                assert cell.texts[1].endswith(cell.verdict)
    strong = [name for name, row in cells(table).items() if row["first"].strong]
    assert strong == ["IVON, 10 samples"]


def test_the_overview_says_whose_logits_a_temperature_divided(comparison: Comparison) -> None:
    rows = [replace(row, logit_temperature=1.5 if row.method == "AdamW" else 1.0) for row in comparison.rows]
    for made, words in ((comparison, None), (replace(comparison, rows=rows), "A T divided logits of AdamW, as each")):
        study = Study(name="s", reference="AdamW", blocks=(Block(model="m", task="t", comparison=made),))
        caption = overview_table(study, split="test", metric="nll").caption
        assert words in caption if words else "A T divided" not in caption


def test_a_task_without_the_split_has_no_column(study: Study) -> None:
    assert overview_table(study, split="other words", metric="accuracy").headings == ("Accuracy % ↑", "first")
    assert study_splits(study) == ("test", "other words", "foreign")


def test_columns_name_the_model_where_there_are_several(comparison: Comparison) -> None:
    blocks = tuple(Block(model=model, task="t", comparison=comparison) for model in ("a", "b"))
    study = Study(name="s", reference="AdamW", blocks=blocks)
    assert overview_table(study, split="test", metric="nll").headings[1:] == ("t, a", "t, b")


def test_a_method_that_one_task_lacks_leaves_a_gap(comparison: Comparison) -> None:
    fewer = Comparison(task="t", rows=[row for row in comparison.rows if row.method == "AdamW"], resamples=40)
    blocks = (Block(model="m", task="a", comparison=comparison), Block(model="m", task="b", comparison=fewer))
    table = overview_table(Study(name="s", reference="AdamW", blocks=blocks), split="test", metric="nll")
    assert cells(table)["IVON, 10 samples"]["b"] == Cell()


def test_verdicts_are_counted_over_tasks(study: Study) -> None:
    table = record_table(study, split="test")
    assert table.headings == ("Tasks, against AdamW", "Accuracy", "NLL", "ECE")
    for tally in tallies(study, split="test", metrics=["accuracy", "nll", "ece_15"]):
        cell = cells(table)[tally.method][METRICS[tally.metric].title]
        assert values(cell) == list(tally.counts.values())
        assert sum(values(cell)) == 2
    assert [text.split()[1] for text in cells(table)["IVON, 10 samples"]["NLL"].texts] == ["better", "unclear", "worse"]
    assert cells(table)["AdamW + temperature"]["Accuracy"].texts == ("2 equal",)


def test_a_difference_has_one_verdict_with_both_intervals(comparison: Comparison) -> None:
    table = differences_table(comparison, metrics=["nll"])
    cell = cells(table)["IVON, 10 samples"]["NLL ↓"]
    difference = comparison.difference("IVON, 10 samples", "AdamW", metric="nll", split="test")
    spread = over_seeds(difference.per_seed)
    assert values(cell) == [difference.value, spread.se, difference.low, difference.high, spread.low, spread.high]
    assert cell.texts[0].split()[-1] == cell.verdict
    assert [text.split()[-1] for text in cell.texts[1:]] == ["examples", "seeds"]
    with pytest.raises(ValueError, match="no reference"):
        differences_table(Comparison(task="t", rows=comparison.rows, reference=None), metrics=["nll"])


def test_one_seed_has_no_interval_over_seeds(comparison: Comparison) -> None:
    one = Comparison(task="t", rows=[row for row in comparison.rows if row.seed == 21], resamples=40)
    table = differences_table(one, metrics=["nll"])
    assert [len(cell.lines) for _, row in table.rows for cell in row] == [2, 2]
    study = Study(name="s", reference="AdamW", blocks=(Block(model="m", task="t", comparison=one),))
    record = record_table(study, split="test")
    assert cells(record)["IVON, 10 samples"]["NLL"].texts == ("1 one seed",)
    assert cells(table)["IVON, 10 samples"]["NLL ↓"].verdict == "one seed"


def test_equal_differences_have_no_interval_over_seeds(comparison: Comparison) -> None:
    twice = [
        replace(row, seed=seed) for row in comparison.rows if row.seed == 21 for seed in (0, 1)
    ]  # two seeds that found the same
    table = differences_table(Comparison(task="t", rows=twice, resamples=40), metrics=["nll"])
    cell = cells(table)["IVON, 10 samples"]["NLL ↓"]
    assert cell.texts[0].endswith(" ± 0.000 unclear")
    assert cell.texts[2:] == ("no interval, seeds",)
    assert cell.verdict == "unclear"


def test_detection(study: Study) -> None:
    table = detection_table(study.blocks[0], "foreign")
    assert table.headings == ("Method", "AUROC, entropy ↑", "FPR95, entropy % ↓")
    row = cells(table)["IVON, 10 samples"]
    assert values(row["AUROC, entropy ↑"]) == [(s := over_seeds([0.75, 0.85])).mean, s.se]
    assert row["FPR95, entropy % ↓"].texts == ("37.5 ± 12.5",)


def frontier() -> Frontier:
    def point(label: str, seed: int, value: float | None, accuracy: float) -> FrontierPoint:
        metrics = {"accuracy": accuracy, "nll": 1.0, "ece_15": 0.1, "brier": 0.3}
        return FrontierPoint(label=label, seed=seed, value=value, metrics=metrics)

    return Frontier(
        over="temperature",
        split="test",
        points=(
            point("IVON", 0, 1.0, 0.5),
            point("IVON", 0, 0.5, 0.25),
            point("IVON", 1, 1.0, 0.75),
            point("IVON", 1, 0.5, 0.25),
            point("AdamW", 0, None, 0.4),
        ),
    )


def test_a_frontier_is_sorted_by_its_setting() -> None:
    table = frontier_table(frontier())
    assert [name for name, _ in table.rows] == ["IVON, τ 0.5", "IVON, τ 1", "AdamW"]
    assert cells(table)["IVON, τ 1"]["Accuracy % ↑"].texts == ("62.5 ± 12.5",)
    assert cells(table)["AdamW"]["Accuracy % ↑"].texts == ("40.0",)


def test_costs_are_means_and_gaps_where_a_seed_is_not_known() -> None:
    def cost(seed: int, seconds: float | None) -> Cost:
        return Cost(
            label="ivon",
            seed=seed,
            train_seconds=100.0 * (seed + 1),
            predict_seconds={"IVON, mean": 1.0 + seed, "IVON, samples": 10.0},
            peak_memory_bytes=None if seconds is None else 3_000_000,
            file_bytes=4_000_000,
        )

    table = costs_table([cost(0, 1.0), cost(1, None)])
    assert [(name, [cell.texts for cell in row]) for name, row in table.rows] == [
        ("IVON, mean", [("ivon",), ("150",), ("1.5",), (), ("4",)]),
        ("IVON, samples", [("ivon",), ("150",), ("10",), (), ("4",)]),
    ]


def test_a_training_without_rows_has_its_cost_too() -> None:
    cost = Cost(label="a", seed=0, train_seconds=None, predict_seconds={}, peak_memory_bytes=None, file_bytes=1000)
    ((name, row),) = costs_table([cost]).rows
    assert (name, [cell.texts for cell in row]) == ("a", [("a",), (), (), (), ("0.001",)])


@pytest.mark.parametrize("over", ["temperature", "prune", "samples"])
def test_every_frontier_has_words(over: str) -> None:
    one = Frontier(over=over, split="test", points=frontier().points)
    assert frontier_table(one).caption.startswith("Along the ")
