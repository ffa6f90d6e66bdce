"""SST-2: the sentiment of sentences of film reviews, and product reviews as a domain shift.

The hub's copy has the sentences only (6920/872/1821, test labels included), not GLUE's 67k phrases.

Source: Socher et al. 2013, EMNLP, D13-1170. Shift: Hu & Liu 2004, KDD.
"""

from __future__ import annotations

from varlora.tasks.named import Benchmark

sst2 = Benchmark(
    name="sst2",
    dataset="SetFit/sst2",
    splits={"train": "train", "validation": "validation", "test": "test"},
    files={
        "train": "train.jsonl",
        "validation": "validation.jsonl",
        "test": "test.jsonl",
        "shift": "shift_customer_reviews.jsonl",
    },
    optional=("shift",),
    record=lambda row, _split: {"text": row["text"], "label": row["label"]},
    label_names=("negative", "positive"),
    licence="no explicit licence (research use)",
    source="Socher et al. 2013, D13-1170; shift: Hu & Liu 2004",
    example={"text": "a fine film", "label": "positive"},
    deviations=("GLUE's SST-2 trains on 67k phrases and hides its test labels; these are the sentences",),
)
