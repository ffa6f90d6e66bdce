"""A task's rows as token ids, and batches of them.

A causal LM's batches are padded on the left, so that the last position of every row is the last one of its
prompt; an encoder's on the right.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from varlora.io.data_sets import in_memory
from varlora.tasks.choice_sequences import ChoiceSequences, choice_sequences
from varlora.tasks.cutting import shorten
from varlora.tasks.description import TaskDescription
from varlora.tasks.task import OUT_OF_SCOPE, Task
from varlora.tasks.tokens import continuation_tokens, split_special

if TYPE_CHECKING:
    import datasets
    from torch import Tensor
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
    rows, encoded, cut = task.rows(split), [], 0
    column = "text" if family == "encoder" and "text" in rows.column_names else "prompt"
    for row in rows:
        if task.cloze and family == "causal":
            choices, was_cut = _choices(task, split, row, tokenizer, max_length, truncation)
            cut += was_cut
            encoded.append(
                {"id": row["id"], **asdict(choices), "labels": _label(row), "num_choices": row["num_choices"]}
            )
            continue
        before, own, after = split_special(tokenizer, row[column])
        if family == "causal":
            after = []
        if task.kind == "completion":
            try:
                after = _completion(tokenizer, row["prompt"], row["completion"])
            except ValueError as error:
                raise ValueError(f"task {task.name!r}, {split}, row {row['id']!r}: {error}") from error
        length = len(before) + len(own) + len(after)
        if max_length is not None and length > max_length:
            too_long = (
                f"task {task.name!r}, {split}, row {row['id']!r} has {length} tokens, more than the {max_length} "
                "allowed; raise max_length if the model's context permits, shorten the row"
            )
            if truncation == "error":
                raise ValueError(f"{too_long}, or allow truncation='left'")
            try:
                own = shorten(row, column, tokenizer, max_length - len(before) - len(after), side=truncation)
            except ValueError as error:
                raise ValueError(f"{too_long}. It cannot be cut: {error}") from error
            cut += 1
        ids = before + own + after
        if task.kind == "completion":
            labels: int | list[int] = [IGNORE] * (len(before) + len(own)) + after
            encoded.append({"id": row["id"], "input_ids": ids, "labels": labels})
        else:
            encoded.append(
                {"id": row["id"], "input_ids": ids, "labels": _label(row), "num_choices": row["num_choices"]}
            )
    if cut:
        logger.warning(
            "%s, %s: %d of %d rows cut on the %s to %d tokens",
            *(task.name, split, cut, len(rows), truncation, max_length),
        )
    said = TaskDescription.of(task, family=family, max_length=max_length, truncation=truncation)
    return in_memory(encoded, description=said.attached())


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
    encoded, cut = [], 0
    for row in task.rows(split):
        before, own, _ = split_special(tokenizer, row["prompt"])
        length = len(before) + len(own)
        if max_length is not None and length > max_length:
            too_long = (
                f"task {task.name!r}, {split}: the prompt of row {row['id']!r} has {length} tokens, more than the "
                f"{max_length} that leave room for a text behind it; lower max_new_tokens, raise max_length if "
                "the model's context permits, shorten the row"
            )
            if truncation == "error":
                raise ValueError(f"{too_long}, or allow truncation='left'")
            try:
                own = shorten(row, "prompt", tokenizer, max_length - len(before), side=truncation)
            except ValueError as error:
                raise ValueError(f"{too_long}. It cannot be cut: {error}") from error
            cut += 1
        encoded.append({"id": row["id"], "input_ids": before + own})
    if cut:
        logger.warning(
            "%s, %s: %d of %d prompts cut on the %s to %d tokens",
            *(task.name, split, cut, len(encoded), truncation, max_length),
        )
    return in_memory(encoded)


def _label(row: Mapping[str, Any]) -> int:
    return IGNORE if row["label"] == OUT_OF_SCOPE else int(row["label"])


def _choices(
    task: Task,
    split: str,
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    truncation: Truncation,
) -> tuple[ChoiceSequences, bool]:
    """The sequences of a row's choices, and whether they had to be cut."""
    where = f"task {task.name!r}, {split}, row {row['id']!r}"
    try:
        choices = choice_sequences(tokenizer, row, task.continuations)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if max_length is None or choices.longest <= max_length:
        return choices, False
    too_long = (
        f"{where} has {choices.longest} tokens with its longest choice, more than the {max_length} allowed; raise "
        "max_length if the model's context permits, shorten the row"
    )
    if truncation == "error":
        raise ValueError(f"{too_long}, or allow truncation='left'")
    try:
        return choice_sequences(tokenizer, row, task.continuations, longest=max_length, side=truncation), True
    except ValueError as error:
        raise ValueError(f"{too_long}. It cannot be cut: {error}") from error


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


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Pads encoded rows to one batch.

    Attributes:
        pad_token_id: What fills the padding (masked out, so any token will do).
        num_classes: C, for the mask of choices; 0 for a completion task.
        padding_side: "left" for causal LMs, "right" for encoders.
        ids: Also hand on the rows' ids, as a list of strings under "id".

    Example:
        >>> collate = Collator(pad_token_id=0, num_classes=3)
        >>> batch = collate([{"input_ids": [5, 6, 7], "labels": 2, "num_choices": 3},
        ...                  {"input_ids": [8], "labels": 0, "num_choices": 2}])
        >>> batch["input_ids"].tolist(), batch["choice_mask"].tolist()
        ([[5, 6, 7], [0, 0, 8]], [[True, True, True], [True, True, False]])
    """

    pad_token_id: int
    num_classes: int = 0
    padding_side: Literal["left", "right"] = "left"
    ids: bool = False

    def __post_init__(self) -> None:
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {self.padding_side!r}; allowed: left, right")

    @classmethod
    def of(
        cls, task: Task, tokenizer: PreTrainedTokenizerBase, *, family: Family = "causal", ids: bool = False
    ) -> Collator:
        """The collator of a task for a kind of model.

        Raises:
            ValueError: If an encoder's tokenizer has no padding token.
        """
        pad = tokenizer.pad_token_id
        if pad is None and family == "encoder":
            raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no padding token; set tokenizer.pad_token")
        if pad is None:
            pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        side: Literal["left", "right"] = "left" if family == "causal" else "right"
        return cls(pad_token_id=pad, num_classes=task.num_classes, padding_side=side, ids=ids)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make one batch.

        Returns:
            `input_ids` and `attention_mask` (B, T) int64; `labels` (B,) int64 class indices, or (B, T) token
            ids for a completion task, none for prompts alone; `choice_mask` (B, C) bool where there are classes.
            Where choices are scored as texts, `input_ids` and `attention_mask` (B, C, T), all padding for a choice
            that is missing, and `choice_lengths` and `choice_bytes` (B, C) int64.
        """
        batch: dict[str, Any]
        if "choice_lengths" in rows[0]:
            batch = self._choices(rows)
        else:
            batch = {
                "input_ids": self._pad([row["input_ids"] for row in rows], self.pad_token_id),
                "attention_mask": self._pad([[1] * len(row["input_ids"]) for row in rows], 0),
            }
        if self.num_classes:
            import torch

            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=torch.int64)
            num_choices = torch.tensor([row["num_choices"] for row in rows])
            batch["choice_mask"] = torch.arange(self.num_classes) < num_choices[:, None]
        elif "labels" in rows[0]:
            batch["labels"] = self._pad([row["labels"] for row in rows], IGNORE)
        if self.ids:
            batch["id"] = [str(row["id"]) for row in rows]
        return batch

    def _choices(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        def filled(column: str, empty: Any) -> list[Any]:
            return [[*row[column], *[empty] * (self.num_classes - len(row[column]))] for row in rows]

        sequences = [ids for row in filled("input_ids", []) for ids in row]
        shape = (len(rows), self.num_classes, -1)
        return {
            "input_ids": self._pad(sequences, self.pad_token_id).reshape(shape),
            "attention_mask": self._pad([[1] * len(ids) for ids in sequences], 0).reshape(shape),
            "choice_lengths": torch.tensor(filled("choice_lengths", 0)),
            "choice_bytes": torch.tensor(filled("choice_bytes", 0)),
        }

    def _pad(self, sequences: Sequence[Sequence[int]], value: int) -> Tensor:
        import torch  # `varlora tasks` need not wait for it

        tensors = [torch.tensor(sequence, dtype=torch.int64) for sequence in sequences]
        return torch.nn.utils.rnn.pad_sequence(
            tensors, batch_first=True, padding_value=value, padding_side=self.padding_side
        )
