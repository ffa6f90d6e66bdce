"""Choices that begin with the same tokens as one sequence: what they share once, behind it what each has of its own.

    question  text A  text B  text C          a token sees the question and its own text up to itself, no other text

Positions count on from the question in every text, so that each token has the position that it has where its choice is
a row by itself, and sees the same tokens at the same distances, within a sliding window too. What choices share is
found by their tokens: a tokenizer may merge a question's last letters with a text's first ones.

Attention goes by the square of a sequence's length, so that many choices are packed in parts, each behind the question
anew, once the squares come to more than `LARGEST_MASK` and than those of the same choices as rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from varlora.readout.answer_logits import Places, base_of, is_opaque
from varlora.readout.lower_layers import lower_layers_of
from varlora.readout.rounding import agree
from varlora.readout.trunks import DECODERS, Decoder, trunk_of

logger = logging.getLogger(__name__)

LARGEST_MASK = 2**24
"""B L² of a sequence that is never cut: 16 MiB of mask where attention takes booleans, 64 MiB where it is eager."""
_agrees: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether packed choices have the scores of choices that are rows, by base model."""


@dataclass(frozen=True, kw_only=True)
class PackedChoices:
    """A batch of B rows, each with the tokens of all of its choices, or of some.

    Attributes:
        choices: which of them.
        ids: tokens (B, L), padded on the right.
        positions: of each token in its choice (B, L).
        branches: (B, L) int64, 0 where choices share the token, else 1 + the choice's number; −1 for padding.
        places: where the tokens that are scored are predicted, by row, choice and token.
        targets: these tokens (P,).
    """

    choices: slice
    ids: Tensor
    positions: Tensor
    branches: Tensor
    places: Places
    targets: Tensor

    def sees(self, window: int | None) -> Tensor:
        """Which tokens each attends to (B, 1, L, L) bool.

        Args:
            window: how many tokens a layer sees, its own among them; None sees all.
        """
        query, key = self.branches[:, :, None], self.branches[:, None]
        distance = self.positions[:, :, None] - self.positions[:, None]
        seen = ((key == 0) | (key == query)) & (distance >= 0) & (key >= 0)
        if window is not None:
            seen &= distance < window
        return (seen | torch.eye(self.ids.shape[1], dtype=torch.bool, device=seen.device))[:, None]

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """What a causal LM, of which `takes_packed` is true, is called with."""
        config: Any = base_of(model).config
        windows = {kind: config.sliding_window if kind == "sliding_attention" else None for kind in _kinds(config)}
        masks = {kind: self._mask(model, window) for kind, window in windows.items()}
        return {
            "input_ids": self.ids,
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "position_ids": self.positions,
            "use_cache": False,
        }

    def _mask(self, model: nn.Module, window: int | None) -> Tensor:
        base: Any = base_of(model)
        seen = self.sees(window)
        if base.config._attn_implementation == "sdpa":
            return seen
        return torch.zeros_like(seen, dtype=base.dtype).masked_fill(~seen, torch.finfo(base.dtype).min)


def packed_choices(batch: Mapping[str, Any]) -> list[PackedChoices] | None:
    """The choices of a batch, packed, in as few parts as their masks allow; None where that saves no token.

    A part of choices that no row has is left out.

    Args:
        batch: as for `choice_log_likelihoods`, every text with a token before it.

    Example:
        >>> ids = torch.tensor([[[1, 2, 3, 4], [1, 2, 3, 5]]])
        >>> [packed] = packed_choices({"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "choice_mask": torch.tensor([[True, True]]), "choice_lengths": torch.tensor([[1, 1]])})
        >>> packed.ids.tolist(), packed.positions.tolist(), packed.branches.tolist()
        ([[1, 2, 3, 4, 3, 5]], [[0, 1, 2, 3, 2, 3]], [[0, 0, 1, 1, 2, 2]])
    """
    exists, longest = batch["choice_mask"], batch["input_ids"].shape[-1]
    sequences, choices = int(exists.sum()), exists.shape[1]
    parts = [_packed(batch, slice(0, choices))]
    if parts[0].ids.numel() >= sequences * longest:
        return None
    most, each = max(LARGEST_MASK, sequences * longest**2), choices
    while each > 1 and any(part.ids.numel() * part.ids.shape[1] > most for part in parts):
        each = -(-each // 2)
        cuts = [slice(first, min(first + each, choices)) for first in range(0, choices, each)]
        parts = [_packed(batch, some) for some in cuts if bool(exists[:, some].any())]
    return parts


def _packed(batch: Mapping[str, Any], some: slice) -> PackedChoices:
    """Some of the choices of a batch as one sequence for each row, whose other choices are as if they were missing."""
    exists, lengths = batch["choice_mask"][:, some], batch["choice_lengths"][:, some]
    real, given = batch["attention_mask"][:, some] != 0, batch["input_ids"][:, some]
    counts, first = real.sum(-1), real.int().argmax(-1)
    index = torch.arange(real.shape[-1], device=real.device)
    ids = given.gather(-1, (first[..., None] + index).clamp(max=real.shape[-1] - 1))
    own = (index < counts[..., None]) & exists[..., None]
    one = exists.int().argmax(1)  # a choice that exists
    reference = ids.gather(1, one[:, None, None].expand(-1, 1, ids.shape[-1]))
    same = (((ids == reference) & own) | ~exists[..., None]).all(1)
    before = torch.where(exists, counts - lengths - 1, ids.shape[-1]).amin(1)  # the last token before a text predicts
    shared = (torch.minimum(same.int().cumprod(1).sum(1), before) * exists.any(1))[:, None]
    alone = torch.where(exists, counts - shared, 0)
    length = int((shared[:, 0] + alone.sum(1)).max())
    starts = shared + alone.cumsum(1) - alone
    slots = torch.where(index < shared[..., None], index, starts[..., None] + index - shared[..., None])
    is_one = torch.arange(exists.shape[1], device=exists.device) == one[:, None]
    kept = own & ((index >= shared[..., None]) | is_one[..., None])
    rows, choices, tokens = kept.nonzero(as_tuple=True)
    to = slots[kept]
    packed, positions = ids.new_zeros(len(exists), length), index.new_zeros(len(exists), length)
    branches = torch.full_like(positions, -1)
    packed[rows, to], positions[rows, to] = ids[kept], tokens
    branches[rows, to] = torch.where(tokens < shared[rows, 0], 0, choices + 1)
    scored = own & (index >= (counts - lengths)[..., None])
    return PackedChoices(
        choices=some,
        ids=packed,
        positions=positions,
        branches=branches,
        places=(scored.nonzero(as_tuple=True)[0], slots[scored] - 1),
        targets=ids[scored],
    )


def takes_packed(model: nn.Module) -> bool:
    """Whether a model may be given packed choices: a decoder of a known family, in evaluation and without gradients.

    Where it trains or is linearised a row is one choice, for whoever looks at its layers' inputs and gradients; where
    dropout is on, for the sake of its random numbers; and where lower layers are cached by row.
    """
    base = base_of(model)
    if (
        torch.is_grad_enabled()
        or is_opaque(model)
        or _agrees.get(base) is False
        or any(module.training for module in model.modules())
    ):
        return False
    if not _is_known(base):
        logger.info(
            "%s computes a question once for each of its choices: they share it in decoders of %s, with sdpa or eager "
            "attention to what is before a token",
            type(base).__name__,
            ", ".join(DECODERS.values()),
        )
        _agrees[base] = False
        return False
    lower = lower_layers_of(trunk_of(base))
    return lower is None or not lower.by_row


def packed_or_by_rows(
    model: nn.Module, lengths: Tensor, packed: Callable[[], Tensor], by_rows: Callable[[], Tensor]
) -> Tensor:
    """Scores by the first way, if they are those of the second; which is seen once for every model.

    Args:
        model: the model.
        lengths: of each choice (B, C), tokens that are scored: scores are compared by token, since what half precision
            rounds off a long text's is more than a short one's mistake.
        packed: scores of packed choices (B, C).
        by_rows: scores of the same choices as rows.
    """
    base = base_of(model)
    if base in _agrees:
        return packed() if _agrees[base] else by_rows()
    expected = by_rows()
    try:
        scores = packed()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        logger.debug("packed choices of %s failed: %s", type(base).__name__, error)
        _agrees[base] = False
    else:
        tokens = lengths.to(expected.device).clamp(min=1)
        _agrees[base] = agree(base, expected / tokens, scores / tokens)
        if _agrees[base]:
            return scores  # also of the first batch: a row's scores do not depend on what was asked before
    logger.warning(
        "%s does not give the same scores where choices share their question's tokens; each has its own",
        type(base).__name__,
    )
    return expected


def num_tokens(batch: Mapping[str, Any]) -> int:
    """Of a batch, padding included: what goes through a model at once where choices are packed."""
    packed = packed_choices(batch) if {"choice_lengths", "choice_mask"} <= batch.keys() else None
    return int(batch["input_ids"].numel() if packed is None else max(part.ids.numel() for part in packed))


def _is_known(base: nn.Module) -> bool:
    """Whether a model takes masks and positions as `PackedChoices` makes them."""
    try:
        trunk = trunk_of(base)
    except ValueError:
        return False
    config: Any = base.config
    return (
        isinstance(trunk, Decoder)
        and config._attn_implementation in ("sdpa", "eager")
        and set(_kinds(config)) <= {"full_attention", "sliding_attention"}
        and not getattr(config, "use_bidirectional_attention", None)
    )


def _kinds(config: Any) -> list[str]:
    """The kinds of attention of a model's layers."""
    named = getattr(config, "layer_types", None)
    if named:
        return sorted(set(named))
    return ["sliding_attention" if getattr(config, "sliding_window", None) is not None else "full_attention"]
