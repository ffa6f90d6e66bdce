"""benchmarks/auto.py: intervals over seeds, paired differences, and rows of several folders in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from auto import tables


def study(folder: Path, rows: dict[str, dict[int, float]], *, reference: str = "AdamW") -> Path:
    """A folder of `varlora compare` in which a row's NLL is the given one by seed, and its other measures are .5."""
    found: dict[str, Any] = {
        label: {
            "seeds": list(by_seed),
            "per_seed": [{"accuracy": 0.5, "nll": nll, "ece_15": 0.5} for nll in by_seed.values()],
        }
        for label, by_seed in rows.items()
    }
    comparison = {"splits": {"test": {"methods": found}}}
    first = next(iter(rows))
    detection = {"ood": {first: {"auroc_entropy": [0.9] * len(rows[first])}}}
    blocks = [
        {"task": "trec6", "comparison": comparison, "detection": detection},
        {"task": "empty", "comparison": None, "detection": {}},
    ]
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({"reference": reference, "blocks": blocks}), encoding="utf-8")
    return folder


def line(text: str, label: str) -> list[str]:
    """The cells of a row of the first table."""
    [found] = [row for row in text.split("**")[2].splitlines() if row.startswith(f"| {label} ")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    text = tables([study(tmp_path / "a", {"AdamW": {0: 1.0, 1: 2.0, 2: 3.0}, "IVON": {0: 0.8, 1: 1.9, 2: 2.7}})])
    assert line(text, "AdamW")[:4] == ["AdamW", "3", "0.500 ± 0.000", "2.000 ± 2.484"]
    assert line(text, "AdamW")[5:] == ["–"] * 3
    assert line(text, "IVON")[6] == "-0.200 ± 0.248 unclear"  # t of 2 degrees of freedom, 4.30, times .1 / √3
    assert "empty" not in text


def test_a_difference_beyond_its_interval_is_named(tmp_path: Path) -> None:
    text = tables(
        [study(tmp_path / "a", {"AdamW": {0: 1.0, 1: 2.0}, "IVON": {0: 0.9, 1: 1.899}, "SWAG": {0: 1.2, 1: 2.202}})]
    )
    assert line(text, "IVON")[6] == "-0.100 ± 0.006 better"
    assert line(text, "SWAG")[6] == "+0.201 ± 0.013 worse"


def test_equal_differences_of_all_seeds_are_not_clear_here_either(tmp_path: Path) -> None:
    text = tables([study(tmp_path / "a", {"AdamW": {0: 1.0, 1: 2.0}, "IVON": {0: 0.9, 1: 1.9}})])
    assert line(text, "IVON")[6] == "-0.100 ± 0.000 unclear"
    assert line(text, "IVON")[5] == "+0.000 ± 0.000 equal"


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    text = tables([study(tmp_path / "a", {"AdamW": {0: 1.0}, "IVON": {0: 0.9}})])
    assert line(text, "IVON")[1:] == ["1", "0.500", "0.900", "0.500", "+0.000 equal", "-0.100 one seed", "+0.000 equal"]


def test_a_row_of_another_folder_is_paired_over_the_seeds_it_has(tmp_path: Path) -> None:
    first = study(tmp_path / "a", {"AdamW": {0: 1.0, 1: 2.0, 2: 9.0}})
    second = study(tmp_path / "b", {"AdamW": {0: 1.0, 1: 2.0}, "IVON": {0: 0.9, 1: 1.899}})
    text = tables([first, second])
    assert line(text, "AdamW")[1] == "3"
    assert line(text, "IVON")[1] == "2"
    assert line(text, "IVON")[6] == "-0.100 ± 0.006 better"


def test_any_row_can_be_the_reference(tmp_path: Path) -> None:
    folders = [study(tmp_path / name, {name: {0: 1.0, 1: 2.0}}, reference=name) for name in ("a", "b")]
    both = study(tmp_path / "both", {"AdamW": {0: 1.0, 1: 2.0}, "IVON": {0: 0.9, 1: 1.899}})
    assert line(tables([both], "IVON"), "AdamW")[6] == "+0.100 ± 0.006 worse"
    assert line(tables(folders, "b"), "a")[6] == "+0.000 ± 0.000 equal"
    with pytest.raises(ValueError, match="no row is 'SWAG'; there are 'AdamW', 'IVON'"):
        tables([both], "SWAG")


def test_out_of_scope_rows_have_a_table_of_their_own(tmp_path: Path) -> None:
    text = tables([study(tmp_path / "a", {"AdamW": {0: 1.0, 1: 2.0}})])
    assert "| AdamW | 2 | 0.900 ± 0.000 | – | – | – |" in text.split("**trec6, ood, out of scope**")[1]


def test_plans_with_different_references_are_not_mixed(tmp_path: Path) -> None:
    folders = [study(tmp_path / name, {name: {0: 1.0}}, reference=name) for name in ("a", "b")]
    with pytest.raises(ValueError, match="different references: a, b"):
        tables(folders)
    with pytest.raises(FileNotFoundError):
        tables([tmp_path])
