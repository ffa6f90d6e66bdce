"""How likely each choice's text is behind its prompt: the sum of its tokens' log-probabilities under a causal LM.

A batch has one sequence for each choice of a row, prompt and text together. In training and in evaluation they are
packed (`varlora.readout.packed_choices`): what a row's choices share is computed once. Where they cannot be, or
somebody looks at the model's layers by row, all sequences go through the model in one call, those of missing choices
left out, each with its prompt. The softmax over the vocabulary is taken at the texts' positions alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlora.readout.answer_logits import Places, decoder_inputs, last_positions, logits_at
from varlora.readout.packed_choices import packed_choices, packed_or_by_rows, takes_packed

ENTRIES = ("input_ids", "attention_mask", "choice_mask", "choice_lengths")
"""What is read of a batch."""


def choice_log_likelihoods(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """log p(text | prompt) of each choice.

    Args:
        model: A causal LM, wrapped or not.
        batch: `input_ids` and `attention_mask` (B, C, T), padded on either side; `choice_mask` (B, C) bool, True where
            the choice exists; `choice_lengths` (B, C), how many tokens at a sequence's end are its text.

    Returns:
        (B, C), in nats, float32 or wider; -inf where there is no choice; differentiable. The vocabulary's logits are
        computed in the output layer's data type, its softmax in float32.

    Raises:
        ValueError: If the batch is another, or a text leaves no prompt before it.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8,
        ...                                      num_hidden_layers=1, num_attention_heads=2)).eval()
        >>> ids = torch.tensor([[[1, 2, 4], [1, 2, 5]]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...          "choice_mask": torch.tensor([[True, True]]), "choice_lengths": torch.tensor([[1, 1]])}
        >>> by_hand = model(ids[:, 0]).logits[:, 1].log_softmax(-1)[:, [4, 5]]
        >>> torch.allclose(choice_log_likelihoods(model, batch), by_hand)
        True
    """
    if missing := [name for name in ENTRIES if name not in batch]:
        raise ValueError(
            f"choices are scored as texts, and the batch lacks {', '.join(missing)}; make it by `encode` and "
            "`Collator` of a task that is worded so (prompt_style='cloze')"
        )
    exists = batch["choice_mask"]
    if batch["input_ids"].ndim != 3 or batch["input_ids"].shape[:2] != exists.shape:
        raise ValueError(
            f"choices are scored as texts, which needs input_ids (B, C, T) and choice_mask (B, C); got "
            f"{tuple(batch['input_ids'].shape)} and {tuple(exists.shape)}"
        )
    ids, mask, lengths = (batch[name][exists] for name in ("input_ids", "attention_mask", "choice_lengths"))
    last = last_positions(mask)[:, None]
    index = torch.arange(ids.shape[1], device=ids.device)
    before = (index >= last - lengths[:, None]) & (index < last)  # each token is predicted at the one before it
    if bool((before.sum(1) != lengths).any()) or bool((mask[before] == 0).any()):
        raise ValueError("a choice's text has no token before it to predict it from; give it a prompt")
    rows, positions = before.nonzero(as_tuple=True)

    def score(inputs: Mapping[str, Any], places: Places, targets: Tensor, some: slice = slice(None)) -> Tensor:
        logits = logits_at(model, inputs, places)
        log_probs = -F.cross_entropy(logits, targets.to(logits.device), reduction="none")
        there = torch.zeros_like(exists)
        there[:, some] = exists[:, some]
        scored, there = before[there[exists]].to(logits.device), there[:, some].to(logits.device)
        scores = log_probs.new_zeros(scored.shape).masked_scatter(scored, log_probs).sum(1)
        return scores.new_full(there.shape, -torch.inf).masked_scatter(there, scores)

    def by_rows() -> Tensor:
        inputs = decoder_inputs(model, {"input_ids": ids, "attention_mask": mask})
        return score(inputs, (rows, positions), ids[rows, positions + 1])

    parts = packed_choices(batch) if takes_packed(model) else None
    if parts is None:
        return by_rows()

    def packed() -> Tensor:
        found = [score(part.call(model), part.places, part.targets, part.choices) for part in parts]
        scores = found[0].new_full(exists.shape, -torch.inf)
        for part, of_part in zip(parts, found, strict=True):
            scores[:, part.choices] = of_part
        return scores

    return packed_or_by_rows(model, batch["choice_lengths"], packed=packed, by_rows=by_rows)
