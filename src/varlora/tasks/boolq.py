"""BoolQ: natural yes/no questions, each with a passage that answers it; 9427 training rows.

The official test labels are hidden, so the validation set is the test set here, and validation is cut from train.

Source: Clark et al. 2019, "BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions", NAACL,
arXiv:1905.10044.
"""

from __future__ import annotations

from varlora.tasks.named import Benchmark

boolq = Benchmark(
    name="boolq",
    dataset="google/boolq",
    splits={"train": "train", "test": "validation"},
    files={"train": "train.jsonl", "test": ("validation.jsonl", "dev.jsonl", "test.jsonl")},
    record=lambda row, _split: {"passage": row["passage"], "question": row["question"], "answer": row["answer"]},
    licence="CC BY-SA 3.0",
    source="Clark et al. 2019, arXiv:1905.10044",
    note="test: the official validation set (3270 rows); the official test is unlabelled",
    example={"passage": "Crows are birds, and most birds fly.", "question": "do crows fly", "answer": True},
    deviations=(
        "Laplace-LoRA, IVON and BLoB answer False and True, we answer no and yes unless prompt_style says otherwise",
        "they cut long rows (after 400 or 320 tokens; BLoB the passage after 1024 characters); we refuse a row longer "
        "than max_length unless truncation says which side to cut",
    ),
)
