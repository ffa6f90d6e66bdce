"""GSM8K: word problems of grade-school mathematics, each with a worked solution that ends in "#### 42".

A solution is trained on as published, with its calculator annotations ("<<48/2=24>>"); what counts as right is the
number behind "####". There is no official validation split: it is cut from train.

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv:2110.14168.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varlora.tasks.named import Benchmark


def _record(row: Mapping[str, Any], _split: str) -> dict[str, Any]:
    """A row of {"question", "answer"}, the answer being the worked solution."""
    own = {"id": row["id"]} if "id" in row else {}
    return {**own, "prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"}


gsm8k = Benchmark(
    name="gsm8k",
    dataset="openai/gsm8k",
    config="main",
    splits={"train": "train", "test": "test"},
    record=_record,
    record_fields=("question", "answer"),
    final_answer="number",
    licence="MIT",
    source="Cobbe et al. 2021, arXiv:2110.14168",
    example=_record(
        {"question": "Ann has 2 pens and buys 3. How many has she?", "answer": "2+3=<<2+3=5>>5\n#### 5"}, ""
    ),
    note="solutions as published, calculator annotations included; right or wrong by the number behind ####",
)
