"""Rows of which each holds several texts that begin alike: what a token sees there, and what a decoder is called with.

    question  text A  text B  text C          a token sees the question and its own text up to itself, no other text

Positions count on from the question in every text, so that each token has the position that it has where its text is
a row by itself, and sees the same tokens at the same distances, within a sliding window too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """A batch of B rows of several texts each.

    Attributes:
        ids: tokens (B, L), padded on the right.
        positions: of each token in its text (B, L).
        branches: (B, L) int64, 0 where all texts have the token, else the text's number from 1; −1 for padding.
    """

    ids: Tensor
    positions: Tensor
    branches: Tensor

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

    def inputs(self, decoder: Any) -> dict[str, Any]:
        """What a decoder that `takes_these_masks`, or the causal LM around it, is called with."""
        config = decoder.config
        windows = {
            kind: config.sliding_window if kind == "sliding_attention" else None for kind in _kinds_of_attention(config)
        }
        masks = {kind: self._mask(decoder, window) for kind, window in windows.items()}
        return {
            "input_ids": self.ids,
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "position_ids": self.positions,
            "use_cache": False,
        }

    def _mask(self, decoder: Any, window: int | None) -> Tensor:
        seen = self.sees(window)
        if decoder.config._attn_implementation == "sdpa":
            return seen
        dtype = decoder.dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def takes_these_masks(config: Any) -> bool:
    """Whether a decoder's attention, by its configuration, reads masks as `PackedRows` makes them."""
    return (
        config._attn_implementation in ("sdpa", "eager")
        and set(_kinds_of_attention(config)) <= {"full_attention", "sliding_attention"}
        and not getattr(config, "use_bidirectional_attention", None)
    )


def _kinds_of_attention(config: Any) -> list[str]:
    """The kinds of attention of a model's layers."""
    named = getattr(config, "layer_types", None)
    if named:
        return sorted(set(named))
    return ["sliding_attention" if getattr(config, "sliding_window", None) is not None else "full_attention"]
