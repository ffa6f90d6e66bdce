"""WinoGrande-S: which of two names fills the blank ("_") of a sentence; 640 training rows.

The official test labels are hidden, so the development set is the test set here, and validation is cut from
train.

Source: Sakaguchi et al. 2020, "WinoGrande", AAAI, arXiv:1907.10641.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varlora.tasks.named import Benchmark


def _record(row: Mapping[str, Any], _split: str) -> dict[str, Any]:
    answer = int(row["answer"]) - 1 if row["answer"] in ("1", "2") else row["answer"]
    return {"question": row["sentence"], "choices": [row["option1"], row["option2"]], "answer": answer}


winogrande_s = Benchmark(
    name="winogrande_s",
    dataset="allenai/winogrande",
    config="winogrande_s",
    splits={"train": "train", "test": "validation"},
    files={"train": "train.jsonl", "test": "dev_a.jsonl"},
    record=_record,
    licence="CC BY 2.0",
    source="Sakaguchi et al. 2020, arXiv:1907.10641",
    note="test: the official development set (a local folder may hold half of it); the official test is unlabelled",
)
