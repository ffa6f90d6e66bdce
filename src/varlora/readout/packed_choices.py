"""Choices that begin with the same tokens as one sequence: what they share once, behind it what each has of its own.

A token sees the question and its own choice's text (`varlora.readout.packed_rows`). What choices share is found by
their tokens: a tokenizer may merge a question's last letters with a text's first ones.

Attention goes by the square of a sequence's length, so that many choices are packed in parts, each behind the question
anew, once the squares come to more than `LARGEST_MASK` and than those of the same choices as rows.

Scores and gradients are those of choices that are rows, up to rounding, which is seen on a model's first batch, in
evaluation and in training. Who looks at layers by row, their inputs, gradients or noise, asks for a row for each choice
(`choices_as_rows`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from varlora.readout.answer_logits import Places, base_of, is_opaque
from varlora.readout.lower_layers import lower_layers_of
from varlora.readout.packed_rows import PackedRows, takes_these_masks
from varlora.readout.rounding import agree
from varlora.readout.trunks import BRANCHES, DECODERS, Decoder, is_recomputed, trunk_of

logger = logging.getLogger(__name__)

LARGEST_MASK = 2**24
"""B L² of a sequence that is never cut: 16 MiB of mask where attention takes booleans, 64 MiB where it is eager."""
TOKENS_LIKE_ONE = 1024
"""To attend to so many takes as long as all else that a layer does with a token: of layers as wide as SmolLM2-135M's
(576) on a processor, in training and in evaluation; wider layers do more with a token."""
_agrees: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
"""Whether packed choices have the scores of choices that are rows, by base model, in training mode and not."""
_told: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""What has been logged of a base model."""


@dataclass(frozen=True, kw_only=True)
class PackedChoices(PackedRows):
    """A batch of B rows, each with the tokens of all of its choices, or of some.

    Attributes:
        choices: which of them.
        places: where the tokens that are scored are predicted, by row, choice and token.
        targets: these tokens (P,).
    """

    choices: slice
    places: Places
    targets: Tensor

    def call(self, model: nn.Module) -> dict[str, Any]:
        """What a causal LM, of which `takes_packed` is true, is called with."""
        base = base_of(model)
        lower = lower_layers_of(trunk_of(base))
        known_by = {BRANCHES: self.branches} if lower is not None and lower.by_row else {}
        return self.inputs(base) | known_by


def packed_choices(batch: Mapping[str, Any]) -> list[PackedChoices] | None:
    """The choices of a batch, packed, in as few parts as their masks allow; None where that saves nothing.

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
    most, each = max(LARGEST_MASK, sequences * longest**2), choices
    while each > 1 and any(part.ids.numel() * part.ids.shape[1] > most for part in parts):
        each = -(-each // 2)
        cuts = [slice(first, min(first + each, choices)) for first in range(0, choices, each)]
        parts = [_packed(batch, some) for some in cuts if bool(exists[:, some].any())]
    cost = sum(part.ids.numel() * (1 + part.ids.shape[1] / TOKENS_LIKE_ONE) for part in parts)
    by_rows = sequences * longest * (1 + longest / 2 / TOKENS_LIKE_ONE)  # attention without a mask skips half
    return parts if cost < by_rows else None


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
    branches[rows, to] = torch.where(tokens < shared[rows, 0], 0, exists.cumsum(1)[rows, choices])
    scored = own & (index >= (counts - lengths)[..., None])
    return PackedChoices(
        choices=some,
        ids=packed,
        positions=positions,
        branches=branches,
        places=(scored.nonzero(as_tuple=True)[0], slots[scored] - 1),
        targets=ids[scored],
    )


def choices_as_rows(model: nn.Module) -> RemovableHandle:
    """Makes each choice a row of the model's inputs where gradients are computed, until the handle is removed.

    For whoever looks at the model's layers by row: at inputs and gradients of single examples, or with noise that is
    a row's own. A copy of the model is asked the same.

    Args:
        model: the model, wrapped or not.

    Returns:
        The handle, which a `with` block removes.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8,
        ...                                      num_hidden_layers=1, num_attention_heads=2))
        >>> with choices_as_rows(model):
        ...     takes_packed(model)
        False
        >>> takes_packed(model)
        True
    """
    return base_of(model).register_forward_pre_hook(_rows_are_looked_at)


def takes_packed(model: nn.Module) -> bool:
    """Whether a model may be given packed choices: a decoder of a known family in which nothing is random by row.

    A row is one choice where dropout is on, for the sake of its random numbers. Where gradients are computed it is so
    within `choices_as_rows`; among several processes, which have to call the model equally often; and where cached
    layers' states would have to be there again for each part of a batch (gradient checkpointing).
    """
    base = base_of(model)
    if is_opaque(model) or _agrees.get(base, {}).get(base.training) is False or _drops(model):
        return False
    if not _is_known(base):
        _tell_once(
            base,
            f"computes a question once for each of its choices: they share it in decoders of "
            f"{', '.join(DECODERS.values())}, with sdpa or eager attention to what is before a token",
        )
        return False
    if not torch.is_grad_enabled():
        return True
    if _rows_are_looked_at in base._forward_pre_hooks.values():
        return False
    trunk = trunk_of(base)
    lower = lower_layers_of(trunk)
    if lower is not None and lower.by_row and any(map(is_recomputed, trunk.layers)):
        _tell_once(base, "has a row for each choice in training: its cached layers are not shared with checkpointing")
        return False
    if dist.is_available() and dist.is_initialized():
        _tell_once(base, "has a row for each choice in training, as it trains in several processes")
        return False
    return True


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
    known = _agrees.setdefault(base, {})
    if base.training in known:
        return packed() if known[base.training] else by_rows()
    with torch.autograd.graph.saved_tensors_hooks(lambda _: None, _no_backward):
        expected = by_rows().detach()
    try:
        scores = packed()  # last, so that a backward pass that computes anew finds what this call has left
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        logger.debug("packed choices of %s failed: %s", type(base).__name__, error)
        known[base.training] = False
    else:
        tokens = lengths.to(expected.device).clamp(min=1)
        known[base.training] = agree(base, expected / tokens, scores.detach() / tokens)
        if known[base.training]:
            return scores  # also of the first batch: a row's scores do not depend on what was asked before
        del scores
    logger.warning(
        "%s does not give the same scores where choices share their question's tokens; each has its own",
        type(base).__name__,
    )
    return by_rows() if torch.is_grad_enabled() else expected


def num_tokens(batch: Mapping[str, Any]) -> int:
    """Of a batch, padding included: what goes through a model at once where choices are packed."""
    packed = packed_choices(batch) if {"choice_lengths", "choice_mask"} <= batch.keys() else None
    return int(batch["input_ids"].numel() if packed is None else max(part.ids.numel() for part in packed))


def _is_known(base: nn.Module) -> bool:
    """Whether a model takes masks and positions as `PackedRows` makes them."""
    try:
        trunk = trunk_of(base)
    except ValueError:
        return False
    return isinstance(trunk, Decoder) and takes_these_masks(base.config)


def _drops(model: nn.Module) -> bool:
    """Whether some module, in training mode, has a dropout rate above 0: a layer of dropout, or its own attribute."""
    return any(
        module.training
        and any(
            value
            for name, value in vars(module).items()
            if type(value) in (int, float) and ("dropout" in name or (name == "p" and isinstance(module, _DropoutNd)))
        )
        for module in model.modules()
    )


def _tell_once(base: nn.Module, what: str) -> None:
    """Logs something of a model, once for it."""
    told = _told.setdefault(base, set())
    if what not in told:
        told.add(what)
        logger.info("%s %s", type(base).__name__, what)


def _rows_are_looked_at(*_: Any) -> None:
    """A hook that says so, and does nothing."""


def _no_backward(_: Any) -> NoReturn:
    raise RuntimeError("scores that are compared only have no backward pass")
