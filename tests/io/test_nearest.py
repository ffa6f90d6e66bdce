"""Hints for misspelt names."""

from __future__ import annotations

from varlora.io.nearest import nearest


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("lora_rank", ["seed", "lora_r", "lora_alpha"]) == "did you mean 'lora_r'?"


def test_where_nothing_is_near_all_is_told_or_where_to_look() -> None:
    assert nearest("zzz", ["seed", "lora_r"]) == "known: lora_r, seed."
    assert nearest("zzz", ["seed", "lora_r"], otherwise="see the help") == "see the help"
