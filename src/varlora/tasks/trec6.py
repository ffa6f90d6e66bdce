"""TREC-6: what kind of thing a question asks for; six classes of very different sizes.

There is no official validation split: it is cut from train.

Source: Li & Roth 2002, "Learning Question Classifiers", COLING.
"""

from __future__ import annotations

from varlora.tasks.named import Benchmark

CLASSES = ("description", "entity", "abbreviation", "human", "location", "numeric")
HUB_CLASSES = {"DESC": 0, "ENTY": 1, "ABBR": 2, "HUM": 3, "LOC": 4, "NUM": 5}

trec6 = Benchmark(
    name="trec6",
    dataset="CogComp/trec",
    revision="refs/convert/parquet",
    splits={"train": "train", "test": "test"},
    record=lambda row, _split: {
        "text": row["text"],
        "label": HUB_CLASSES.get(row["coarse_label"], row["coarse_label"]),
    },
    label_names=CLASSES,
    licence="no explicit licence (public research data)",
    source="Li & Roth 2002",
    example={"text": "Who wrote the first dictionary?", "label": "human"},
)
