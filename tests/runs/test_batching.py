"""Rows batched by length, and put back."""

from __future__ import annotations

from pathlib import Path

import torch

from small_runs import config, save_model, write_rows
from tiny_runs import uneven_films
from varlora.runs.batching import batch_by_length
from varlora.runs.setting import load_setting


def test_rows_of_like_length_share_a_batch_and_find_back(tmp_path: Path) -> None:
    test = write_rows(tmp_path / "uneven.jsonl", uneven_films(10))
    settings = config(tmp_path / "run", save_model(tmp_path / "m"), test_file=test, per_device_eval_batch_size=4)
    setting = load_setting(settings)
    encoded = setting.encoded("test")

    batches, back, ids = batch_by_length(setting, encoded)

    held = list(batches)
    widths = [batch["input_ids"].shape[1] for batch in held]
    assert widths == sorted(widths)
    assert len(set(widths)) > 1
    assert ids == tuple(f"film-{i}" for i in range(10))
    in_order = [str(name) for batch in held for name in batch["id"]]
    assert [in_order[row] for row in back.tolist()] == list(ids)
    labels = torch.cat([batch["labels"] for batch in held])
    assert labels[back].tolist() == encoded["labels"][:]
