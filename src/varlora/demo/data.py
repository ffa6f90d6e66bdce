"""Where the shipped model and the demos' plans are, and the fine-tuning task as files."""

from __future__ import annotations

import json
from pathlib import Path

from varlora.demo.world import fine_tuning_task

PLANS = {"embedded": "plan.yaml", "smollm2": "smollm2.yaml"}
"""The demos, by the model that is fine-tuned."""


def model_folder() -> Path:
    """The pre-trained Llama and its tokenizer, an ordinary Hugging Face folder.

    Example:
        >>> from transformers import AutoTokenizer
        >>> AutoTokenizer.from_pretrained(model_folder()).tokenize("What will")
        ['What', 'will']
    """
    return Path(__file__).parent / "model"


def plan_file(model: str = "embedded") -> Path:
    """The plan of `varlora demo`, as `varlora.compare.read_plan` reads it; its rows, if it brings any, are beside it.

    Args:
        model: a key of `PLANS`.

    Example:
        >>> from varlora.compare import read_plan
        >>> read_plan(plan_file()).labels[:2]
        ('AdamW', 'AdamW + temperature')
    """
    return Path(__file__).parent / PLANS[model]


def task_texts(seed: int, *, train: int = 300, validation: int = 150, test: int = 500) -> dict[str, str]:
    """`fine_tuning_task` as JSONL, by split.

    Args:
        seed: Seed of the task.
        train: Rows of "train".
        validation: Rows of "validation".
        test: Rows of "test".

    Raises:
        ValueError: If a size is negative or there are more rows than people.

    Example:
        >>> texts = task_texts(0, train=2, validation=1, test=1)
        >>> sorted(json.loads(texts["train"].splitlines()[0]))
        ['answer', 'choices', 'id', 'question']
    """
    task = fine_tuning_task(seed, train=train, validation=validation, test=test)
    return {split: "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows) for split, rows in task.items()}


def write_task(
    folder: str | Path, seed: int, *, train: int = 300, validation: int = 150, test: int = 500
) -> dict[str, Path]:
    """Write `task_texts`, whose arguments these are, as `train.jsonl`, `validation.jsonl` and `test.jsonl`.

    Args:
        folder: Made if it does not exist; files of these names are replaced.
        seed: Seed of the task.
        train: Rows of "train".
        validation: Rows of "validation".
        test: Rows of "test".

    Returns:
        Split to file, as `varlora.tasks.load_jsonl` takes them.

    Example:
        >>> import tempfile
        >>> sorted(write_task(tempfile.mkdtemp(), seed=0, train=2, validation=1, test=1))
        ['test', 'train', 'validation']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for split, text in task_texts(seed, train=train, validation=validation, test=test).items():
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text(text, encoding="utf-8")
    return files
