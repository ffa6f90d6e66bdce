"""WinoGrande: which of two names fills the blank ("_") of a sentence; 640 (S) or 2558 (M) training rows.

The official test labels are hidden, so the development set is the test set here, and validation is cut from
train. All sizes share one development set. A local folder may hold it whole (dev.jsonl) or half of it (dev_a.jsonl or
dev_b.jsonl, which share no row).

Source: Sakaguchi et al. 2020, "WinoGrande", AAAI, arXiv:1907.10641.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varlora.tasks.named import Benchmark


def _record(row: Mapping[str, Any], _split: str) -> dict[str, Any]:
    answer = int(row["answer"]) - 1 if row["answer"] in ("1", "2") else row["answer"]
    return {"question": row["sentence"], "choices": [row["option1"], row["option2"]], "answer": answer}


def _winogrande(size: str) -> Benchmark:
    return Benchmark(
        name=f"winogrande_{size}",
        dataset="allenai/winogrande",
        config=f"winogrande_{size}",
        splits={"train": "train", "test": "validation"},
        files={"train": "train.jsonl", "test": ("dev_a.jsonl", "dev_b.jsonl", "dev.jsonl")},
        record=_record,
        choice_role="blank",
        licence="CC BY 2.0",
        source="Sakaguchi et al. 2020, arXiv:1907.10641",
        note=(
            "test: the official development set (a local folder may hold half of it); the official test is unlabelled"
        ),
        example={"question": "Ann thanked Bea because _ had helped.", "choices": ["Ann", "Bea"], "answer": 1},
        deviations=(
            "the code of Laplace-LoRA, IVON and BLoB tests on the whole development set too (1267 rows), and by "
            "default trains on every training row, without a validation split cut from it",
        ),
    )


winogrande_s = _winogrande("s")
winogrande_m = _winogrande("m")
