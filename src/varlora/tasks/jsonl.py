"""The user's own files, JSONL or a table: one record a line or row, in one of five shapes.

{"text": ..., "label": ...}                      classification; label an integer or a string
{"question": ..., "choices": [...], "answer": ...}   multiple choice; index, letter or text of the choice
{"passage": ..., "question": ..., "answer": true}    yes or no
{"prompt": ..., "completion": ...}               free text
{"messages": [{"role": ..., "content": ...}, ...]}   chat; the last message is the assistant's
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from varlora.io.files import LARGEST_JSON, read_text
from varlora.tasks.build import build_task
from varlora.tasks.classes import check_label_names
from varlora.tasks.description import Wording
from varlora.tasks.files import read_records
from varlora.tasks.overlap import note_overlap
from varlora.tasks.own_prompts import OwnPrompt
from varlora.tasks.rows import LabelAnswers
from varlora.tasks.splitting import VALIDATION_SIZE, cut_validation
from varlora.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_jsonl(
    files: Mapping[str, str | Path] | str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    name: str = "jsonl",
    label_names: Sequence[str] | str | Path | None = None,
    ood_splits: Collection[str] = (),
    label_answers: LabelAnswers = "names",
    prompt_style: str = "varlora",
    prompt: OwnPrompt | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    validation_size: float | int = VALIDATION_SIZE,
    seed: int = 0,
    licence: str | None = None,
    source: str | None = None,
) -> Task:
    """Load a task from files, check every line, and cut a validation split when none is given.

    Args:
        files: Split name to file (JSONL, CSV or Parquet: `varlora.tasks.files`), or one file of training rows. "train",
            "validation" and "test" have their usual meaning; any other name is one more split to evaluate on, e.g. a
            domain shift.
        columns: The files' columns by our names, e.g. {"text": "sentence"}; those not named have our names.
        name: Name of the task.
        label_names: Class names in order, or a file of them (a JSON list, or one name a line). By default the
            labels found in "train", sorted.
        ood_splits: Splits in which label -1 (belongs to no class) is allowed.
        label_answers: How a causal LM names a class: by its "names" or by "letters".
        prompt_style: How a causal LM is asked (`varlora.tasks.PROMPT_STYLES`); of texts to classify "cloze" alone, by
            which their classes' names are scored.
        prompt: Words and turns of your own around rows with answers to choose from.
        tokenizer: For chats: its chat template writes the prompt.
        validation_size: Fraction or number of training rows to cut when there is no "validation".
        seed: Decides which rows are cut.
        licence: Licence of the data.
        source: Where the data came from; the file names by default.

    Raises:
        ValueError: Naming file, line and field, what was given and what is allowed.
        FileNotFoundError: If a file is not there.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> file = Path(folder, "train.jsonl")
        >>> lines = [{"text": f"film {i}", "label": "good" if i % 2 else "bad"} for i in range(20)]
        >>> _ = file.write_text("\\n".join(map(json.dumps, lines)), encoding="utf-8")
        >>> task = load_jsonl({"train": file}, name="films")
        >>> task.answers, len(task.rows("train")), len(task.rows("validation"))
        (('bad', 'good'), 18, 2)
        >>> task.notes
        ('validation: 2 rows cut from the 20 of train, seed 0, each class in proportion',)
    """
    if isinstance(files, (str, Path)):
        files = {"train": files}
    if not files:
        raise ValueError("no data file was given; give at least one, e.g. a train file")
    sources = {split: read_records(file, columns=columns) for split, file in files.items()}
    if isinstance(label_names, (str, Path)):
        label_names = read_label_names(label_names)
    task = build_task(
        name,
        sources,
        label_names=label_names,
        ood_splits=ood_splits,
        wording=Wording.of(prompt, prompt_style=prompt_style, label_answers=label_answers),
        tokenizer=tokenizer,
        licence=licence,
        source=source or ", ".join(Path(file).name for file in files.values()),
    )
    return note_overlap(cut_validation(task, size=validation_size, seed=seed))


def read_label_names(file: str | Path) -> list[str]:
    """Read class names in order: a JSON list of strings, or one name a line.

    Raises:
        ValueError: If it is neither, or the names are fewer than two, empty or alike.
        FileNotFoundError: If there is no such file.
    """
    path = Path(file)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    text = read_text(path, largest=LARGEST_JSON)
    if not text.lstrip().startswith(("[", "{")):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return list(check_label_names(lines, where=str(path)))
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error.msg} at line {error.lineno}") from error
    except RecursionError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: label names must be a JSON list of strings, or one name a line")
    return list(check_label_names(names, where=str(path)))
