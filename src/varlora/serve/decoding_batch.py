"""Texts that are written in step, a token each at a time, with the keys and values of what they have read so far.

    prefill ──► DecodingBatch ──step, step, ...──► texts leave when they end, and newcomers join

Rows are padded on the left. Where every layer keeps plain keys and values, two batches become one by padding the
shorter; where a model keeps something else (a sliding window), its batches are written in turn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from varlora.readout.answer_logits import forward_parameters
from varlora.serve.language_model import BASE, device_of
from varlora.serve.sequences import LEAST, Scored, TextSequence, choose_tokens, likeliest


class DecodingBatch:
    """Texts in step.

    Args:
        model: the base model, plain or with adapters.
        sequences: the texts; all of them of one adapter, unless PEFT can mix theirs.

    Raises:
        ValueError: the model gives NaN.
    """

    def __init__(self, model: Any, sequences: Sequence[TextSequence]) -> None:
        self.model, self.sequences = model, list(sequences)
        device = device_of(model)
        length = max(len(sequence.prompt) for sequence in sequences)
        ids = torch.zeros(len(sequences), length, dtype=torch.int64)
        self.mask = torch.zeros(len(sequences), length, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            ids[row, length - len(sequence.prompt) :] = torch.tensor(sequence.prompt)
            self.mask[row, length - len(sequence.prompt) :] = 1
        self.mask = self.mask.to(device)
        echoed = any(sequence.echo for sequence in sequences)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        logits = self._forward(ids.to(device), positions, None, keep=0 if echoed else 1)
        if echoed:
            self._score_prompts(logits)
        writing = [row for row, sequence in enumerate(sequences) if sequence.max_new_tokens]
        for sequence in sequences:
            if not sequence.max_new_tokens:
                sequence.finish_reason = "length"
                sequence.stream.end()
        self._add(writing, logits[:, -1])

    def step(self) -> None:
        """One more token for each text; those that have ended leave."""
        rows = len(self.sequences)
        last = torch.tensor([[sequence.scored[-1].token] for sequence in self.sequences], device=self.mask.device)
        self.mask = torch.cat([self.mask, self.mask.new_ones(rows, 1)], 1)
        logits = self._forward(last, self.mask.sum(1, keepdim=True) - 1, self.cache, keep=1)
        self._add(range(rows), logits[:, -1])

    def drop(self, unwanted: set[TextSequence]) -> None:
        """Lets texts go that nobody waits for."""
        if unwanted:
            self._keep([row for row, sequence in enumerate(self.sequences) if sequence not in unwanted])

    def can_join(self, other: DecodingBatch) -> bool:
        """Whether two can become one."""
        return all(type(layer) is DynamicLayer for batch in (self, other) for layer in batch.cache.layers)

    def join(self, other: DecodingBatch) -> None:
        """Takes in the other's texts."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [_padded(getattr(layer, name), length) for layer in (mine, theirs)]
                setattr(mine, name, torch.cat(both))
        masks = [torch.nn.functional.pad(m, (length - m.shape[1], 0)) for m in (self.mask, other.mask)]
        self.mask = torch.cat(masks)
        self.sequences += other.sequences

    def _add(self, rows: Sequence[int] | range, logits: Tensor) -> None:
        chosen = [self.sequences[row] for row in rows]
        if chosen:
            for sequence, scored in zip(chosen, choose_tokens(logits[list(rows)], chosen), strict=True):
                sequence.add(scored)
        self._keep([row for row, sequence in enumerate(self.sequences) if sequence.finish_reason is None])

    def _keep(self, rows: Sequence[int]) -> None:
        if len(rows) == len(self.sequences):
            return
        self.sequences = [self.sequences[row] for row in rows]
        if not rows:
            return
        index = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]
        empty = int(self.mask.any(0).int().argmax())
        if empty and all(type(layer) is DynamicLayer for layer in self.cache.layers):
            self.mask = self.mask[:, empty:]
            for layer in cast(Any, self.cache.layers):
                layer.keys, layer.values = layer.keys[:, :, empty:], layer.values[:, :, empty:]

    def _forward(self, ids: Tensor, positions: Tensor, cache: DynamicCache | None, *, keep: int) -> Tensor:
        accepted = forward_parameters(self.model)
        options: dict[str, Any] = {"attention_mask": self.mask, "use_cache": True, "past_key_values": cache}
        if "position_ids" in accepted:
            options["position_ids"] = positions
        if keep and "logits_to_keep" in accepted:
            options["logits_to_keep"] = keep
        adapters = [sequence.adapter for sequence in self.sequences]
        if len(set(adapters)) > 1:
            options["adapter_names"] = adapters
        elif adapters[0] != BASE:
            activate(self.model, adapters[0])
        with torch.inference_mode(), _only(self.model, adapters):
            output: Any = self.model(input_ids=ids, **options)
        self.cache: DynamicCache = output.past_key_values
        return cast(Tensor, output.logits)

    def _score_prompts(self, logits: Tensor) -> None:
        """The prompts' own tokens; the first of a prompt follows nothing, and has no probability."""
        for row, sequence in enumerate(self.sequences):
            if not sequence.echo:
                continue
            own = logits[row, logits.shape[1] - len(sequence.prompt) :].float()
            sequence.scored_prompt = [None]
            for at, token in enumerate(sequence.prompt[1:]):
                log_prob = max(float(own[at, token] - own[at].logsumexp(-1)), LEAST)
                sequence.scored_prompt.append(Scored(token=token, log_prob=log_prob, top=likeliest(own[at], sequence)))


def prefill_groups(sequences: Sequence[TextSequence]) -> Iterator[list[TextSequence]]:
    """Newcomers by length, those together between which little padding is needed; prompts to be scored alone."""
    group: list[TextSequence] = []
    for sequence in sorted(sequences, key=lambda one: (one.echo, len(one.prompt))):
        if group and (sequence.echo or len(sequence.prompt) > 1.25 * len(group[0].prompt) + 8):
            yield group
            group = []
        group.append(sequence)
    if group:
        yield group


def activate(model: PeftModel, adapter: str) -> None:
    """Makes an adapter the active one; to find that it is costs nothing."""
    if model.active_adapter != adapter:
        model.set_adapter(adapter, inference_mode=True)


@contextmanager
def _only(model: Any, adapters: Collection[str]) -> Iterator[None]:
    """Within the block the base model computes alone, where all rows ask for that; else the active adapter does."""
    if set(adapters) != {BASE} or not isinstance(model, PeftModel):
        yield
        return
    with model.disable_adapter():
        yield


def _padded(t: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(t, (0, 0, length - t.shape[-2], 0))
