"""The benchmark of docs/auto.md: what is run, what is run again, and what the tables say."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("scipy")

import auto
from auto import ENTRIES, REFERENCE, SIZES, Bench, Cell, difference, interval, table_of, verdict
from auto_robustness import CENTER, CURVES, bench_at, curve

from varlora.runs import method_of


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(auto, "packaged_model", lambda: tmp_path / "encoder")
    monkeypatch.setattr(auto, "GENERATED_TEST", 20)
    return Bench(output_dir=tmp_path / "runs", data=tmp_path / "data")


def test_every_cell_has_a_folder_of_its_own_and_settings_that_its_method_takes(bench: Bench) -> None:
    cells = [
        Cell(task, size, entry, seed)
        for (task, sizes), entry, seed in itertools.product(SIZES.items(), ENTRIES, (0, 1))
        for size in sizes
    ]
    configs = [bench.config(cell) for cell in cells]
    assert len({config.output_dir for config in configs}) == len(cells)
    for cell, config in zip(cells, configs, strict=True):
        method_of(config)
        assert (config.seed, config.data_seed) == (cell.seed, cell.seed)
        assert config.cache_frozen_layers == (cell.task != "generated")


def test_the_default_needs_adamws_learning_rate_and_no_validation_rows(bench: Bench) -> None:
    for task, sizes in SIZES.items():
        config, adamw = (bench.config(Cell(task, sizes[-1], entry, 0)) for entry in ("ivon", "adamw"))
        assert replace(config, method="adamw", held_out=None, output_dir=adamw.output_dir) == adamw
        assert (config.method, config.held_out) == ("ivon", "train")


def test_the_published_recipe_takes_steps_of_adamws_size(bench: Bench) -> None:
    config = bench.config(Cell("trec6", 300, "cong2025", 0))
    assert (config.recipe, config.learning_rate) == ("cong2025", pytest.approx(3.0))


def test_a_finished_run_is_kept_and_one_with_other_settings_is_another(bench: Bench) -> None:
    short = replace(bench, options={"max_steps": 2, "per_device_train_batch_size": 4})
    cell = Cell("generated", 8, "adamw", 0)
    assert short.done(cell) is None
    short.prepare(cell)
    auto._run(short.config(cell))
    found = short.done(cell)
    assert found is not None
    assert found.facts["task"]["rows"] == {"train": 8, "validation": 150, "test": 20}
    written = (found.path / "metrics.json").stat().st_mtime_ns
    short.train([cell], jobs=1)
    assert (found.path / "metrics.json").stat().st_mtime_ns == written
    assert replace(short, options={**short.options, "lora_r": 4}).done(cell) is None
    assert short.done(replace(cell, seed=1)) is None
    assert set(auto.measured({("adamw", 0): found}, "test")) == {"AdamW, last step", "AdamW, last step + T"}


def test_the_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    assert interval([1.5])[0] == 1.5
    assert math.isnan(interval([1.5])[1])


@pytest.mark.parametrize(
    ("metric", "mean", "half", "said"),
    [
        ("nll", -0.2, 0.1, "better"),
        ("nll", 0.2, 0.1, "worse"),
        ("ece_15", 0.1, 0.1, "tie"),
        ("accuracy", 0.2, 0.1, "better"),
        ("auroc_mi", -0.2, 0.1, "worse"),
        ("nll", -0.2, math.nan, ""),
    ],
)
def test_a_verdict_needs_an_interval_without_0(metric: str, mean: float, half: float, said: str) -> None:
    assert verdict(metric, mean, half) == said


def test_differences_are_paired_by_seed() -> None:
    reference = {0: {"nll": 1.0, "auroc_entropy": 0.5}, 1: {"nll": 3.0, "auroc_entropy": 0.7}}
    rows = {1: {"nll": 3.5, "auroc_mi": 0.9}, 0: {"nll": 1.5}, 2: {"nll": 9.0}}
    assert difference(rows, reference, "nll") == (0.5, 0.0)
    found = difference(rows, reference, "auroc_mi")
    assert found is not None
    assert found[0] == pytest.approx(0.2)
    assert difference({2: {"nll": 9.0}}, reference, "nll") is None


def test_a_table_has_every_row_and_metric() -> None:
    names = [REFERENCE, "loses", "samples"]
    table = {
        REFERENCE: {s: {"auroc_entropy": 0.5 + s / 10} for s in (0, 1, 2)},
        "loses": {s: {"auroc_entropy": 0.3 + s / 10} for s in (0, 1, 2)},
        "samples": {s: {"auroc_entropy": 0.5 + s / 10, "auroc_mi": 0.8 + s / 10} for s in (0, 1, 2)},
    }
    lines, verdicts = table_of(table, names)
    assert lines[0] == "| | auroc_entropy | auroc_mi | auroc_entropy − reference | auroc_mi − reference |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in names]
    assert lines[2].endswith("| – | – | – |")
    assert lines[3].endswith("| – | -0.200 ± 0.000 worse | – |")
    assert lines[4].endswith("| +0.000 ± 0.000 tie | +0.300 ± 0.000 better |")
    assert verdicts == {
        ("loses", "auroc_entropy"): "worse",
        ("samples", "auroc_entropy"): "tie",
        ("samples", "auroc_mi"): "better",
    }


def test_curves_move_one_setting_and_pass_through_the_benchmark(bench: Bench) -> None:
    for name, values in CURVES.items():
        for value in values:
            there, size = bench_at(bench, name, value)
            config = there.config(Cell("trec6", size, "adamw", 0))
            assert getattr(config, name) == value
            same = config.output_dir == bench.config(Cell("trec6", 300, "adamw", 0)).output_dir
            assert same == (value == CENTER[name])
            others = {other: getattr(config, other) for other in CENTER if other != name}
            assert others == {other: CENTER[other] for other in others}


def test_a_curve_says_how_far_it_is_above_its_lowest() -> None:
    assert curve([(0.6, 0.1), None, (0.5, math.nan)]) == ["0.600 ± 0.100 (+20 %)", "–", "0.500 (+0 %)"]
    assert curve([None]) == ["–"]
