"""ARC: grade-school science questions with 3 to 5 choices, an easy and a challenging set.

Source: Clark et al. 2018, "Think you have Solved Question Answering? Try ARC", arXiv:1803.05457.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varlora.tasks.named import Benchmark


def lettered_record(row: Mapping[str, Any], question: str) -> dict[str, Any]:
    """A row whose `choices` are parallel lists of texts and labels and whose `answerKey` is one label."""
    choices = row["choices"]
    answer = choices["label"].index(row["answerKey"]) if row["answerKey"] in choices["label"] else row["answerKey"]
    return {"id": row["id"], "question": row[question], "choices": choices["text"], "answer": answer}


def _arc(name: str, config: str) -> Benchmark:
    return Benchmark(
        name=name,
        dataset="allenai/ai2_arc",
        config=config,
        splits={"train": "train", "validation": "validation", "test": "test"},
        record=lambda row, _split: lettered_record(row, "question"),
        licence="CC BY-SA 4.0",
        source="Clark et al. 2018, arXiv:1803.05457",
        note="questions with 3 or 5 choices are kept; choices a question lacks are masked",
        example={"question": "Which one is a liquid?", "choices": ["ice", "water", "steam"], "answer": 1},
        deviations=(
            "Laplace-LoRA's code (as IVON's) keeps the questions with 4 choices only (choices: four) and tests on the "
            "official validation split (570 easy, 299 challenging questions before the filter)",
            "BLoB's code keeps all questions, reads five letters for each, and tests on the official validation split",
        ),
    )


arc_easy = _arc("arc_easy", "ARC-Easy")
arc_challenge = _arc("arc_challenge", "ARC-Challenge")
