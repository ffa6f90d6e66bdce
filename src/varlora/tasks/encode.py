"""A task's rows as token ids."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from varlora.io.data_sets import in_memory
from varlora.tasks.choice_sequences import ChoiceSequences, choice_sequences
from varlora.tasks.cutting import shorten
from varlora.tasks.description import TaskDescription
from varlora.tasks.task import OUT_OF_SCOPE, Task
from varlora.tasks.tokens import AT_ONCE, continuation_tokens, split_all, split_special

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Family = Literal["causal", "encoder"]
Truncation = Literal["error", "left", "right"]
IGNORE = -100
"""A label that no loss counts: an unknown class, or a token of the prompt."""


def encode(
    task: Task,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    family: Family = "causal",
    truncation: Truncation = "error",
) -> datasets.Dataset:
    """Tokenize one split.

    Args:
        task: The task.
        split: Which of its splits.
        tokenizer: The model's tokenizer.
        max_length: Most tokens in a row (the model's context, or less); None sets no limit.
        family: "causal" reads `prompt`, "encoder" reads `text` between the tokenizer's special tokens.
        truncation: What to do with a longer row: "error" refuses it; "left" and "right" cut that side of its text
            and log how many rows were cut. What is around the text stays (`varlora.tasks.cutting`): special tokens,
            instruction, choices, cue; of a conversation the oldest turns go first, its system turn and last header
            stay. A completion is never cut.

    Returns:
        Columns `id`, `input_ids`, `labels` (class index, -100 where unknown; for a completion task the token
        ids with -100 on the prompt) and, for tasks with answers, `num_choices`. For a causal LM on a task whose
        choices' texts are scored (`Task.cloze`), `input_ids` are a list for each choice, beside them `choice_lengths`
        and `choice_bytes` (`varlora.tasks.choice_sequences`). The data set's own description says what the task is
        (`varlora.tasks.description`).

    Raises:
        ValueError: If a row is longer than `max_length` (naming the row and both lengths), or a completion
            changes the tokens of its prompt; a choice that is to be scored has no token; or, where rows are cut, what
            must stay leaves no room for the text.
    """
    if family not in get_args(Family):
        raise ValueError(f"family is {family!r}; allowed: {', '.join(get_args(Family))}")
    if truncation not in get_args(Truncation):
        raise ValueError(f"truncation is {truncation!r}; allowed: {', '.join(get_args(Truncation))}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}; allowed: 1 or more, or None")
    if task.kind == "completion" and family == "encoder":
        raise ValueError(f"task {task.name!r} asks for completions; it needs a causal LM, not an encoder")
    rows = task.rows(split)
    column = "text" if family == "encoder" and "text" in rows.column_names else "prompt"
    limit = _Limit(tokens=max_length, truncation=truncation, tokenizer=tokenizer)
    encoded: list[dict[str, Any]] = []
    one_text = task.kind != "completion" and not (task.cloze and family == "causal")
    texts = split_all(tokenizer, rows[column][:]) if one_text else None
    for row in _each(rows):
        where = f"task {task.name!r}, {split}, row {row['id']!r}"
        if task.kind == "completion":
            with _naming(where):
                answer = _completion(tokenizer, row["prompt"], row["completion"])
            prompt = limit.prompt(row, "prompt", where, split_special(tokenizer, row["prompt"]), behind=answer)
            encoded.append({"id": row["id"], "input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer})
            continue
        if texts is None:
            tokens = asdict(limit.choices(row, task.continuations, where))
        else:
            tokens = {"input_ids": limit.prompt(row, column, where, next(texts), closed=family == "encoder")}
        label = IGNORE if row["label"] == OUT_OF_SCOPE else int(row["label"])
        encoded.append({"id": row["id"], **tokens, "labels": label, "num_choices": row["num_choices"]})
    limit.log_cuts(f"{task.name}, {split}", f"{len(rows)} rows")
    description = TaskDescription.of(task, family=family, max_length=max_length, truncation=truncation)
    return in_memory(encoded, description=description.attached())


def encode_prompts(
    task: Task,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    truncation: Truncation = "error",
) -> datasets.Dataset:
    """Tokenize the prompts of one split for a causal LM to write on after.

    Args:
        task: The task.
        split: Which of its splits.
        tokenizer: The model's tokenizer.
        max_length: Most tokens in a prompt (the model's context less what is to be written); None sets no limit.
        truncation: As of `encode`.

    Returns:
        Columns `id` and `input_ids`.

    Raises:
        ValueError: If a prompt is longer than `max_length` (naming the row and both lengths).
    """
    limit = _Limit(tokens=max_length, truncation=truncation, tokenizer=tokenizer)
    encoded, rows = [], task.rows(split)
    for row, parts in zip(_each(rows), split_all(tokenizer, rows["prompt"][:]), strict=True):
        where = f"task {task.name!r}, {split}: the prompt of row {row['id']!r}"
        encoded.append({"id": row["id"], "input_ids": limit.prompt(row, "prompt", where, parts, written_on=True)})
    limit.log_cuts(f"{task.name}, {split}", f"{len(encoded)} prompts")
    return in_memory(encoded)


def _each(rows: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """The rows, read many at a time: one alone takes as long as fifty."""
    for start in range(0, len(rows), AT_ONCE):
        columns = rows[start : start + AT_ONCE]
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@dataclass(kw_only=True)
class _Limit:
    """Tokenizes rows, cuts those that are too long where that is allowed, and counts them."""

    tokens: int | None
    truncation: Truncation
    tokenizer: PreTrainedTokenizerBase
    cut: int = 0

    def prompt(
        self,
        row: Mapping[str, Any],
        column: str,
        where: str,
        parts: tuple[list[int], list[int], list[int]],
        *,
        behind: Sequence[int] = (),
        closed: bool = False,
        written_on: bool = False,
    ) -> list[int]:
        """The tokens of a row's prompt or text, beside which `behind` has to fit, too.

        Args:
            row: the row.
            column: of it.
            where: what to call it in an error.
            parts: as `split_special` cuts it.
            behind: tokens of an answer.
            closed: with the special tokens that the tokenizer puts behind it.
            written_on: whether the limit leaves room for a text to be written.
        """
        before, own, after = parts
        if not closed:
            after = []
        around = len(before) + len(after) + len(behind)
        if self.tokens is not None and around + len(own) > self.tokens:
            room = "that leave room for a text behind it; lower max_new_tokens," if written_on else "allowed;"
            with self._cutting(f"{where} has {around + len(own)} tokens, more than the {self.tokens} {room}") as side:
                own = shorten(row, column, self.tokenizer, self.tokens - around, side=side)
        return [*before, *own, *after]

    def choices(self, row: Mapping[str, Any], continuations: Sequence[str], where: str) -> ChoiceSequences:
        """The sequences of a row's choices."""
        with _naming(where):
            choices = choice_sequences(self.tokenizer, row, continuations)
        if self.tokens is not None and choices.longest > self.tokens:
            too_long = (
                f"{where} has {choices.longest} tokens with its longest choice, more than the {self.tokens} allowed;"
            )
            with self._cutting(too_long) as side:
                return choice_sequences(self.tokenizer, row, continuations, longest=self.tokens, side=side)
        return choices

    @contextmanager
    def _cutting(self, too_long: str) -> Iterator[Literal["left", "right"]]:
        """Yields the side to cut; refuses a row where none is to be cut, or where it cannot be."""
        advice = f"{too_long} raise max_length if the model's context permits, shorten the row"
        if self.truncation == "error":
            raise ValueError(f"{advice}, or allow truncation='left'")
        try:
            yield self.truncation
        except ValueError as error:
            raise ValueError(f"{advice}. It cannot be cut: {error}") from error
        self.cut += 1

    def log_cuts(self, where: str, rows: str) -> None:
        """Warns of rows that were cut."""
        if self.cut:
            logger.warning(
                "%s: %d of %s cut on the %s to %d tokens", where, self.cut, rows, self.truncation, self.tokens
            )


def _completion(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> list[int]:
    """The completion's tokens, with an end-of-text token unless it brings its own."""
    tokens, end = continuation_tokens(tokenizer, prompt, completion), tokenizer.eos_token_id
    return tokens if end is None or end in tokens[-2:] else [*tokens, end]


PAST_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types whose positions begin behind the padding token's id, which leaves fewer of them (512 of 514)."""


def context_length(config: object) -> int | None:
    """The longest input of a model, from its config; None where it names none.

    Example:
        >>> from transformers import RobertaConfig
        >>> context_length(RobertaConfig(max_position_embeddings=514, pad_token_id=1))
        512
    """
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            kind = getattr(config, "model_type", None)
            padding = 1 if kind == "mpnet" else getattr(config, "pad_token_id", None)  # whatever its config says
            return length - padding - 1 if kind in PAST_PADDING and isinstance(padding, int) else length
    return None
