"""A task out of the raw records of its splits: one shape, one set of answers, checked rows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from varlora.io.data_sets import in_memory
from varlora.tasks import prompts
from varlora.tasks.classes import class_names
from varlora.tasks.description import Wording
from varlora.tasks.final_answers import FinalAnswer
from varlora.tasks.own_prompts import check_fields
from varlora.tasks.prompt_styles import style_of
from varlora.tasks.rows import (
    ANSWER_FIELDS,
    PROMPT_FIELDS,
    SHAPES,
    Records,
    choice_rows,
    completion_rows,
    label_rows,
    message_rows,
    prompt_rows,
    yes_no_rows,
)
from varlora.tasks.task import Shape, Task, TaskKind
from varlora.tasks.unread import find_unread

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def build_task(
    name: str,
    sources: Mapping[str, Records],
    *,
    label_names: Sequence[str] | None = None,
    ood_splits: Collection[str] = (),
    repeated_choices: bool = False,
    wording: Wording | None = None,
    final_answer: FinalAnswer | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    licence: str | None = None,
    source: str | None = None,
    notes: Sequence[str] = (),
    logged: set[str] | None = None,
) -> Task:
    """Check the records of every split and make a task of them.

    Args:
        name: Name of the task.
        sources: Split name to its records.
        label_names: Class names in order, for the shape text/label; by default those of "train", sorted.
        ood_splits: Splits in which label -1 (belongs to no class) is allowed.
        repeated_choices: Accept a question that offers one wrong choice twice, as some official sets do.
        wording: How a causal LM is asked; by default as varlora does.
        final_answer: How the final answer of a completion is read, where completions are right or wrong.
        tokenizer: Needed for chats only: its chat template writes the prompt.
        licence: Licence of the data.
        source: Where the data came from.
        notes: What was done with the data so far.
        logged: Columns not read that were logged before; others are logged, and added. None: all are logged.

    Raises:
        ValueError: For any record that does not fit, naming it.

    Example:
        >>> train = Records(where="pets.jsonl", rows=[
        ...     {"question": "Which one barks?", "choices": ["cat", "dog"], "answer": "B"}])
        >>> task = build_task("pets", {"train": train})
        >>> task.answers, task.rows("train")[0]["label"]
        (('A', 'B'), 1)
    """
    unknown = sorted(set(ood_splits) - set(sources))
    if unknown:
        raise ValueError(f"out-of-scope splits {unknown} are not among the splits {sorted(sources)}")
    shapes = {split: _shape(records) for split, records in sources.items()}
    if len(set(shapes.values())) > 1:
        mixed = "; ".join(f"{sources[split].where}: {'/'.join(SHAPES[s])}" for split, s in shapes.items())
        raise ValueError(f"the splits of one task must have one shape, got {mixed}")
    shape = next(iter(shapes.values()))
    if label_names is not None and shape != "label":
        raise ValueError(f"label names are for the shape text/label; this task is {'/'.join(SHAPES[shape])}")
    wording = wording or Wording()
    label_answers = wording.label_answers
    _check_wording(name, shape, wording, sources, warn=logged is None)
    asking = wording.asking(tokenizer)
    kind: TaskKind
    continuations: tuple[str, ...] = ()
    if shape == "label":
        kind = "label"
        names = class_names(sources, label_names)
        answers = names
        if label_answers == "letters":
            continuations = prompts.letters(len(names))
        elif label_answers != "names":
            raise ValueError(f"label_answers is {label_answers!r}; allowed: names, letters")
        parsed = {
            split: label_rows(records, asking, names, ood=split in ood_splits, label_answers=label_answers)
            for split, records in sources.items()
        }
    elif shape == "choice":
        kind = "choice"
        parsed = {split: choice_rows(records, asking, repeated=repeated_choices) for split, records in sources.items()}
        answers = tuple(prompts.LETTERS[: max(row["num_choices"] for rows in parsed.values() for row in rows)])
    elif shape == "yes_no":
        kind, answers, continuations = "label", prompts.YES_NO, asking.style.no_yes
        parsed = {split: yes_no_rows(records, asking) for split, records in sources.items()}
    else:
        kind, answers = "completion", ()
        parsed = {
            split: message_rows(records, tokenizer) if shape == "messages" else completion_rows(records)
            for split, records in sources.items()
        }
    return Task(
        name=name,
        kind=kind,
        answers=answers,
        continuations=tuple(f"{asking.space}{answer.lstrip()}" for answer in continuations or answers),
        cloze=asking.style.scored is not None,
        final_answer=final_answer,
        wording=wording,
        splits={split: _with_ids(rows, sources[split], split) for split, rows in parsed.items()},
        licence=licence,
        source=source,
        notes=tuple(notes),
        not_read=find_unread(
            name, sources, [shape], tokenizer, in_template=asking.words.fields if asking.words else (), logged=logged
        ),
        shape=shape,
    )


def _check_wording(name: str, shape: Shape, wording: Wording, sources: Mapping[str, Records], *, warn: bool) -> None:
    """Refuses a wording that rows of this shape cannot have, or whose parts do not go together."""
    prompt_style, label_answers, prompt = wording.prompt_style, wording.label_answers, wording.own
    cloze = style_of(prompt_style).scored is not None
    if prompt_style != "varlora" and shape not in ("choice", "yes_no", *(["label"] if cloze else [])):
        raise ValueError(
            f"prompt_style is {prompt_style!r}, which words questions with choices and yes/no questions; {name} is "
            f"{'/'.join(SHAPES[shape])}. Leave prompt_style out."
        )
    if cloze and label_answers == "letters":
        raise ValueError(
            f"prompt_style is {prompt_style!r}, which scores the classes' names, and label_answers is 'letters'; leave "
            "one of them out."
        )
    if prompt.is_set and shape not in PROMPT_FIELDS:
        raise ValueError(
            f"prompt_template, prompt_format and system_prompt are for rows with answers to choose from; {name} is "
            f"{'/'.join(SHAPES[shape])}. Write its rows as you want them read: as prompts, or as messages with a "
            "system's turn."
        )
    if prompt.words is not None:
        if prompt_style != "varlora" and not cloze:
            raise ValueError(
                f"prompt_template words the rows, and so does prompt_style {prompt_style!r}; leave one of them out "
                "(prompt_style 'cloze' goes with a template, whose answers it scores as texts)."
            )
        own = (*PROMPT_FIELDS[shape], *(("choices", "letters") if label_answers == "letters" else ()))
        check_fields(prompt.words, own, ANSWER_FIELDS[shape], list(sources.values()))
        if warn and shape == "choice" and not cloze and "choices" not in prompt.words.fields:
            logger.warning(
                "%s: prompt_template has no {choices}, and the answers are their letters; prompt_style 'cloze' scores "
                "the choices' texts instead",
                name,
            )


def build_prompts(
    name: str,
    split: str,
    records: Records,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    logged: set[str] | None = None,
) -> Task:
    """A completion task of prompts alone, to write on after; every row's completion is empty.

    Args:
        name: Name of the task.
        split: What to call the rows.
        records: Of `prompt` or of chat `messages`; what may follow the prompt is not looked at.
        tokenizer: Needed for chat `messages` only.
        logged: Columns not read that were logged before; others are logged, and added. None: all are logged.

    Raises:
        ValueError: For any record that does not fit, naming it.
    """
    there = {field for row in records.rows for field in row}
    either: tuple[Shape, ...] = ("completion", "messages")
    shapes = [shape for shape in either if SHAPES[shape][0] in there]
    return Task(
        name=name,
        kind="completion",
        answers=(),
        splits={split: _with_ids(prompt_rows(records, tokenizer), records, split)},
        not_read=find_unread(name, {split: records}, shapes, tokenizer, logged=logged),
    )


def _with_ids(rows: Sequence[Mapping[str, Any]], records: Records, split: str) -> datasets.Dataset:
    return in_memory([{"id": i, **row} for i, row in zip(record_ids(records, split), rows, strict=True)])


def _shape(records: Records) -> Shape:
    """The one shape of all records."""
    shapes = {name: records.fields(name) for name in SHAPES if records.labelled or name in ANSWER_FIELDS}
    if not records.rows:
        raise ValueError(f"{records.where} is empty: it holds no record")
    known = "; ".join("/".join(fields) for fields in shapes.values())
    shape: Shape | None = None
    for index, row in enumerate(records.rows):
        at = records.at(index)
        fits = [name for name, fields in shapes.items() if all(field in row for field in fields)]
        if shape is not None and fits == [shape]:
            continue
        if len(fits) > 1:
            several = " and ".join("/".join(shapes[name]) for name in fits)
            raise ValueError(f"{at}: the record fits {several}; keep the columns of one shape")
        if shape is None and fits:
            shape = fits[0]
        elif shape is not None and fits:
            raise ValueError(
                f"{at}: the shape is {'/'.join(shapes[fits[0]])}, but the records before it are "
                f"{'/'.join(shapes[shape])}; put each shape in a file of its own"
            )
        else:
            closest = shapes[shape] if shape else max(shapes.values(), key=lambda f: sum(c in row for c in f))
            missing = [field for field in closest if field not in row]
            if len(missing) == len(closest):
                raise ValueError(f"{at}: got columns {sorted(row)}; allowed shapes: {known}")
            raise ValueError(
                f"{at}: missing column {', '.join(map(repr, missing))} of the shape {'/'.join(closest)}; "
                f"got columns {sorted(row)}; allowed shapes: {known}"
            )
    assert shape is not None
    return shape


def record_ids(records: Records, split: str) -> list[str]:
    """The records' own ids, else split and position; each must be its own."""
    seen: dict[str, int] = {}
    for index, row in enumerate(records.rows):
        value = row.get("id", f"{split}-{records.first + index:05d}")
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise records.error(index, "id", value, "a string or an integer")
        before = seen.setdefault(str(value), index)
        if before != index:
            raise records.error(
                index, "id", value, f"an id of its own ({records.unit} {records.first + before + 1} has the same)"
            )
    return list(seen)
