"""The user's own JSONL files: one record a line, in one of five shapes.

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
from typing import TYPE_CHECKING, Any, NoReturn

from varlora.tasks.build import build_task
from varlora.tasks.overlap import note_overlap
from varlora.tasks.rows import LabelAnswers, Records
from varlora.tasks.splitting import cut_validation
from varlora.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_jsonl(
    files: Mapping[str, str | Path],
    *,
    name: str = "jsonl",
    label_names: Sequence[str] | str | Path | None = None,
    ood_splits: Collection[str] = (),
    label_answers: LabelAnswers = "names",
    prompt_style: str = "varlora",
    tokenizer: PreTrainedTokenizerBase | None = None,
    validation_size: float | int = 0.1,
    seed: int = 0,
    licence: str | None = None,
    source: str | None = None,
) -> Task:
    """Load a task from JSONL files, check every line, and cut a validation split when none is given.

    Args:
        files: Split name to file. "train", "validation" and "test" have their usual meaning; any other name
            is one more split to evaluate on, e.g. a domain shift.
        name: Name of the task.
        label_names: Class names in order, or a file of them (a JSON list, or one name a line). By default the
            labels found in "train", sorted.
        ood_splits: Splits in which label -1 (belongs to no class) is allowed.
        label_answers: How a causal LM names a class: by its "names" or by "letters".
        prompt_style: How a causal LM is asked (`varlora.tasks.PROMPT_STYLES`); for questions only.
        tokenizer: For chat `messages`: its chat template writes the prompt.
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
    if not files:
        raise ValueError("no data file was given; give at least one, e.g. a train file")
    sources = {split: read_jsonl(file) for split, file in files.items()}
    if isinstance(label_names, (str, Path)):
        label_names = read_label_names(label_names)
    task = build_task(
        name,
        sources,
        label_names=label_names,
        ood_splits=ood_splits,
        label_answers=label_answers,
        prompt_style=prompt_style,
        tokenizer=tokenizer,
        licence=licence,
        source=source or ", ".join(Path(file).name for file in files.values()),
    )
    return note_overlap(cut_validation(task, size=validation_size, seed=seed))


def read_jsonl(file: str | Path, *, labelled: bool = True) -> Records:
    """Read a JSONL file: UTF-8 (a byte-order mark is allowed), one JSON object on every line.

    Args:
        file: The file.
        labelled: Whether the records' answers are read (see `Records`).

    Raises:
        ValueError: For an empty file, a blank line, bytes that are not UTF-8, invalid JSON, a value that is
            not an object, or a key that occurs twice; each names the file and the line.
        FileNotFoundError: If there is no such file.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise ValueError(f"{path} is empty: it holds no record")
    lines = content.removesuffix(b"\n").split(b"\n")
    rows = [_record(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]
    return Records(where=str(path), rows=rows, labelled=labelled)


def _record(line: bytes, at: str) -> dict[str, Any]:
    if not line.strip():
        raise ValueError(f"{at} is blank; remove the line")
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"{at}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{at}: not valid JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{at}: got a JSON {type(value).__name__}; allowed: one JSON object a line")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise ValueError(f"the keys {twice} occur twice in one object")
    return value


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def read_label_names(file: str | Path) -> list[str]:
    """Read class names in order: a JSON list of strings, or one name a line.

    Raises:
        ValueError: If it is neither.
        FileNotFoundError: If there is no such file.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error.msg} at line {error.lineno}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: label names must be a JSON list of strings, or one name a line")
    return names
