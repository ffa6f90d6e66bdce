"""CLINC150 (small): 150 intents of requests to an assistant, and requests that fit none of them.

The out-of-scope requests of the test set are the split "ood" and those of the validation set "ood_validation";
those of the training set are not loaded.

Source: Larson et al. 2019, EMNLP, D19-1131.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varlora.tasks.named import Benchmark
from varlora.tasks.task import OUT_OF_SCOPE


def _record(row: Mapping[str, Any], split: str) -> dict[str, Any] | None:
    out_of_scope = row["intent"] == "oos"
    if out_of_scope is not split.startswith("ood"):
        return None
    return {"text": row["text"], "label": OUT_OF_SCOPE if out_of_scope else row["intent"]}


clinc150 = Benchmark(
    name="clinc150",
    dataset="clinc/clinc_oos",
    config="small",
    splits={
        "train": "train",
        "validation": "validation",
        "test": "test",
        "ood": "test",
        "ood_validation": "validation",
    },
    files={
        "train": "train.jsonl",
        "validation": "validation.jsonl",
        "test": "test.jsonl",
        "ood": "oos_test.jsonl",
        "ood_validation": "oos_validation.jsonl",
    },
    optional=("ood", "ood_validation"),
    ood_splits=("ood", "ood_validation"),
    record=_record,
    licence="CC BY 3.0",
    source="Larson et al. 2019, D19-1131",
    example={"text": "wake me at seven", "label": "alarm"},
    note="out-of-scope requests: test's are the split ood, validation's ood_validation, train's are not loaded",
)
