"""Encoded rows in batches.

A causal LM's batches are padded on the left, so that the last position of every row is the last one of its prompt; an
encoder's on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from varlora.tasks.encode import IGNORE, Family
from varlora.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


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
