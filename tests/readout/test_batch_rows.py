"""Which part of a batch is a row's, whatever its values look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from varlora.readout.batch_rows import is_by_rows, num_rows, repeat_rows, take_rows

POSITIONS = torch.arange(3 * 3 * 5).view(3, 3, 5)
"""Time, height and width of the five tokens of three rows: as many coordinates as rows."""
THREE: dict[str, Any] = {
    "input_ids": torch.arange(15).view(3, 5),
    "position_ids": POSITIONS,
    "cache_position": torch.arange(3),
    "id": ["a", "b", "c"],
    "scale": torch.tensor(2.0),
    "note": "x",
}


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([1, 2])])
def test_rows_are_taken_along_their_own_axis(rows: Any) -> None:
    assert is_by_rows(THREE)
    some = take_rows(THREE, rows)
    assert torch.equal(some["input_ids"], THREE["input_ids"][1:])
    assert torch.equal(some["position_ids"], POSITIONS[:, 1:])
    assert some["id"] == ["b", "c"]
    assert all(some[name] is THREE[name] for name in ("cache_position", "scale", "note"))


def test_rows_are_repeated_along_their_own_axis() -> None:
    twice = repeat_rows(THREE, 2)
    assert torch.equal(twice["input_ids"], torch.cat([THREE["input_ids"]] * 2))
    assert torch.equal(twice["position_ids"], torch.cat([POSITIONS] * 2, 1))
    assert twice["id"] == ["a", "b", "c"] * 2
    assert twice["cache_position"] is THREE["cache_position"]


def test_positions_of_choices_have_their_rows_first() -> None:
    choices = {"input_ids": torch.zeros(2, 3, 5), "position_ids": torch.arange(30).view(2, 3, 5)}
    assert torch.equal(take_rows(choices, slice(1, 2))["position_ids"], choices["position_ids"][1:])


@pytest.mark.parametrize(
    ("others", "cuttable"),
    [
        ({"position_ids": torch.zeros(3, 1, 5)}, True),
        ({"position_ids": torch.zeros(3, 2, 5)}, False),
        ({"pixel_values": torch.zeros(40, 8)}, False),
        ({"mask_function": object()}, False),
        ({"length": 3, "flag": None}, True),
    ],
)
def test_what_no_row_can_be_told_of_is_not_cut(others: dict[str, Any], cuttable: bool) -> None:
    batch = {"input_ids": torch.zeros(1, 5), **others}
    assert is_by_rows(batch) == cuttable
    assert num_rows({**batch, "labels": torch.zeros(1)}) == 1


def test_three_coordinates_are_no_three_rows() -> None:
    assert num_rows({"inputs_embeds": torch.zeros(1, 5, 8), "position_ids": torch.zeros(3, 1, 5)}) == 1
