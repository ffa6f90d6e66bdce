"""MMLU's college chemistry, physics, computer science and mathematics: test sets for a model trained on something else.

There is nothing to train on here: `mmlu` is four test sets, one per subject, and `mmlu_chemistry` and its like are one
each. Name them in `shift_tasks` of a run that was trained on lettered questions, such as OpenBookQA's.

Source: Hendrycks et al. 2021, "Measuring Massive Multitask Language Understanding", ICLR, arXiv:2009.03300.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varlora.tasks.named import Benchmark

SUBJECTS: Mapping[str, str] = {
    "chemistry": "college_chemistry",
    "physics": "college_physics",
    "computer_science": "college_computer_science",
    "mathematics": "college_mathematics",
}
"""Our name of a subject to its configuration on the hub."""


def _record(row: Mapping[str, Any], _split: str) -> dict[str, Any]:
    answer = "ABCD".index(row["answer"]) if row["answer"] in tuple("ABCD") else row["answer"]
    return {"question": row["question"], "choices": row["choices"], "answer": answer}


def _mmlu(name: str, subjects: Mapping[str, str]) -> Benchmark:
    """A benchmark of these subjects: split name to our name of the subject."""
    return Benchmark(
        name=name,
        dataset="cais/mmlu",
        splits=dict.fromkeys(subjects, "test"),
        configs={split: SUBJECTS[subject] for split, subject in subjects.items()},
        files={split: f"{subject}.jsonl" for split, subject in subjects.items()},
        folder="mmlu",
        record=_record,
        repeated_choices=True,
        licence="MIT",
        source="Hendrycks et al. 2021, arXiv:2009.03300",
        note=f"test rows only, of {', '.join(SUBJECTS[subject] for subject in subjects.values())}",
        example={
            "question": "What do two hydrogen atoms and one oxygen atom make?",
            "choices": ["salt", "water", "ozone", "ammonia"],
            "answer": 1,
        },
        deviations=(
            "BLoB's chemistry and physics are these (100 and 102 rows); the computer science of BLoB's code is four "
            "subjects (college and high-school computer science, computer security, machine learning)",
        ),
    )


mmlu = _mmlu("mmlu", {subject: subject for subject in SUBJECTS})
mmlu_chemistry = _mmlu("mmlu_chemistry", {"test": "chemistry"})
mmlu_physics = _mmlu("mmlu_physics", {"test": "physics"})
mmlu_computer_science = _mmlu("mmlu_computer_science", {"test": "computer_science"})
mmlu_mathematics = _mmlu("mmlu_mathematics", {"test": "mathematics"})
