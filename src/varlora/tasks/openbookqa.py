"""OpenBookQA: elementary science questions with four choices, without the book's facts.

Source: Mihaylov et al. 2018, "Can a Suit of Armor Conduct Electricity?", EMNLP, arXiv:1809.02789.
"""

from __future__ import annotations

from varlora.tasks.arc import lettered_record
from varlora.tasks.named import Benchmark

openbookqa = Benchmark(
    name="openbookqa",
    dataset="allenai/openbookqa",
    config="main",
    splits={"train": "train", "validation": "validation", "test": "test"},
    record=lambda row, _split: lettered_record(row, "question_stem"),
    repeated_choices=True,
    choice_role="ending",
    note="train: three questions offer one wrong choice twice and are kept so",
    licence="Apache-2.0",
    source="Mihaylov et al. 2018, arXiv:1809.02789",
    example={
        "question": "A plant grows towards",
        "choices": ["the light", "the dark", "the wind", "the sound"],
        "answer": 0,
    },
    deviations=("the code of Laplace-LoRA, IVON and BLoB tests on the official validation split (500 rows)",),
)
