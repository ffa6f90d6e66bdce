"""How a model's answer is read: from a causal LM's answer tokens or its choices' texts, or from a classification head.

All go through the model's own top-level call, in training as in prediction, so that whatever hangs on it
(posterior noise, DDP, gradient checkpointing, autocast) works as in any other forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from varlora.readout.answer_logits import answer_logits, widened
from varlora.readout.choice_log_likelihoods import choice_log_likelihoods

LengthNormalization = Literal["none", "bytes"]


class Readout(Protocol):
    """Reads class logits out of a model."""

    @property
    def num_classes(self) -> int:
        """C."""

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Class logits of a batch.

        Args:
            model: The model, wrapped or not.
            batch: `input_ids` and `attention_mask` (B, T), on the model's device; optionally `token_type_ids`
                (B, T) and `choice_mask` (B, C) bool, True where the choice exists. Where choices are scored as texts,
                each row has a sequence for each choice (`ChoiceTexts`). Other entries are not read.

        Returns:
            (B, C), float32 or wider; -inf for a choice that does not exist.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON from which `readout_from_dict` makes an equal readout."""


@dataclass(frozen=True, kw_only=True)
class AnswerTokens:
    """The answer of a causal LM: its next-token logits at the last real position, answer tokens only.

    Attributes:
        token_ids: One token per class, all different (see `varlora.tasks.answer_tokens`).
        answers: The classes' names.

    Raises:
        ValueError: If there are fewer than two classes, the lengths differ, or two tokens are the same.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> readout = AnswerTokens(token_ids=(3, 7), answers=("A", "B"))
        >>> ids = torch.tensor([[1, 2, 4]])
        >>> logits = readout.logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        >>> torch.allclose(logits, model(ids).logits[:, -1, [3, 7]])
        True
    """

    kind: ClassVar[str] = "answer_tokens"
    token_ids: tuple[int, ...]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", tuple(int(token) for token in self.token_ids))
        if len(self.token_ids) != len(self.answers):
            raise ValueError(f"need one token per answer: {self.token_ids} for {tuple(self.answers)}")
        object.__setattr__(self, "answers", _two_or_more("answers", self.answers))
        if len(set(self.token_ids)) < len(self.token_ids):
            raise ValueError(f"two answers share a token: {self.token_ids} for {self.answers}")

    @property
    def num_classes(self) -> int:
        """Number of answers."""
        return len(self.token_ids)

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Answer logits (B, C); see `Readout.logits`. Padding may be on either side."""
        return _masked(answer_logits(model, batch, self.token_ids), batch.get("choice_mask"))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"kind": self.kind, "token_ids": list(self.token_ids), "answers": list(self.answers)}


@dataclass(frozen=True, kw_only=True)
class ChoiceTexts:
    """The answer of a causal LM by how likely each choice's text is behind the question.

    A choice's logit is the sum of the log-probabilities of its text's tokens, log p(text | prompt), or that sum divided
    by the text's bytes. Predictions and training take the softmax over a row's choices.

    Attributes:
        answers: The choices' names, in order; a row may have fewer.
        length_normalization: "none" for the sum (what lm-evaluation-harness calls acc), "bytes" for the sum by byte
            (acc_bytes, which is acc_norm where the texts are ASCII).

    Raises:
        ValueError: If there are fewer than two answers, or the normalization is unknown.

    Example:
        >>> ChoiceTexts(answers=("A", "B"), length_normalization="bytes").num_classes
        2
    """

    kind: ClassVar[str] = "choice_texts"
    answers: tuple[str, ...]
    length_normalization: LengthNormalization = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", _two_or_more("answers", self.answers))
        if self.length_normalization not in get_args(LengthNormalization):
            allowed = ", ".join(get_args(LengthNormalization))
            raise ValueError(f"length_normalization is {self.length_normalization!r}; allowed: {allowed}")

    @property
    def num_classes(self) -> int:
        """Number of answers."""
        return len(self.answers)

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Log-likelihoods of the choices' texts (B, C), in nats or nats per byte; -inf for a choice that is missing.

        Args:
            model: A causal LM, wrapped or not.
            batch: As `varlora.tasks.Collator` makes it of a task whose choices are scored as texts: `input_ids` and
                `attention_mask` (B, C, T), prompt and text of each choice, padded on either side; `choice_mask` (B, C);
                `choice_lengths` (B, C), the tokens of each text; `choice_bytes` (B, C), its bytes.

        Raises:
            ValueError: If the batch is another.
        """
        scores = choice_log_likelihoods(model, batch)
        if scores.shape[1] != self.num_classes:
            raise ValueError(
                f"the batch has {scores.shape[1]} choices a row, the readout {self.num_classes}; make the batches with "
                "the readout's number of classes"
            )
        if self.length_normalization == "bytes":
            num_bytes: Tensor = batch["choice_bytes"]
            return scores / num_bytes.to(scores.device).clamp(min=1)
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "kind": self.kind,
            "answers": list(self.answers),
            "length_normalization": self.length_normalization,
        }


@dataclass(frozen=True, kw_only=True)
class ClassHead:
    """The answer of a sequence-classification model: its head's logits.

    Attributes:
        classes: The classes' names, in the order of the head's outputs.

    Raises:
        ValueError: If there are fewer than two classes.
    """

    kind: ClassVar[str] = "class_head"
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", _two_or_more("classes", self.classes))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Class logits (B, C); see `Readout.logits`.

        Raises:
            ValueError: If the head has another number of outputs.
        """
        names = ("input_ids", "attention_mask", "token_type_ids")
        logits: Tensor = model(**{name: batch[name] for name in names if name in batch}).logits
        if logits.shape != (len(batch["input_ids"]), self.num_classes):
            raise ValueError(
                f"the model gives logits of shape {tuple(logits.shape)} for {len(batch['input_ids'])} rows and "
                f"{self.num_classes} classes; load it with num_labels={self.num_classes}"
            )
        return _masked(widened(logits), batch.get("choice_mask"))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"kind": self.kind, "classes": list(self.classes)}


def readout_from_dict(value: Mapping[str, Any]) -> AnswerTokens | ChoiceTexts | ClassHead:
    """The readout that `to_dict` described.

    Raises:
        ValueError: If the kind is unknown or a field is missing.

    Example:
        >>> readout_from_dict({"kind": "class_head", "classes": ["no", "yes"]})
        ClassHead(classes=('no', 'yes'))
    """
    try:
        if value["kind"] == AnswerTokens.kind:
            return AnswerTokens(token_ids=tuple(value["token_ids"]), answers=tuple(value["answers"]))
        if value["kind"] == ChoiceTexts.kind:
            return ChoiceTexts(answers=tuple(value["answers"]), length_normalization=value["length_normalization"])
        if value["kind"] == ClassHead.kind:
            return ClassHead(classes=tuple(value["classes"]))
    except KeyError as error:
        raise ValueError(f"the readout {dict(value)} lacks {error}") from error
    known = ", ".join((AnswerTokens.kind, ChoiceTexts.kind, ClassHead.kind))
    raise ValueError(f"readout kind {value['kind']!r}; allowed: {known}")


def answers_of(readout: Readout | None) -> tuple[str, ...]:
    """The names of the classes that a readout reads, in order; none where there is no readout.

    Example:
        >>> answers_of(ClassHead(classes=("no", "yes")))
        ('no', 'yes')
    """
    names: tuple[str, ...] = getattr(readout, "classes", ()) or getattr(readout, "answers", ())
    return names


def _two_or_more(what: str, names: Sequence[str]) -> tuple[str, ...]:
    if len(names) < 2:
        raise ValueError(f"need two or more {what}, got {tuple(names)}")
    return tuple(names)


def _masked(logits: Tensor, choice_mask: Tensor | None) -> Tensor:
    if choice_mask is None:
        return logits
    if choice_mask.shape != logits.shape:
        raise ValueError(
            f"the mask of choices has the shape {tuple(choice_mask.shape)}, the logits {tuple(logits.shape)}; "
            "make the batches with the readout's number of classes"
        )
    return logits.masked_fill(~choice_mask.to(logits.device), -torch.inf)
