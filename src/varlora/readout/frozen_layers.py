"""The frozen lower layers of a model, computed once per row.

Where only upper layers are adapted, what enters the first of them never changes: it is computed at a row's first visit,
in evaluation mode (no dropout below), and looked up ever after, for every step, draw and split. It is the same model:
names, weights and files stay as they are. The numbers agree with the whole model's as far as its own do from batch to
batch, which is up to rounding. Training agrees with that of the whole model if its frozen part is in evaluation mode,
too. Above, a decoder's MLPs compute the rows' own tokens and no padding, unless they are adapted or computed again in
backward. A row that holds a question and all of its choices (`varlora.readout.packed_choices`) is known by its tokens
and by which of them see each other, so that training, evaluation and draws share its states.

Rows are kept without their padding and in the data type in which they are computed, that of the frozen weights:
2 or 4 bytes × tokens of all rows × hidden size; 800 rows of 20 tokens at width 384 take 25 MB in float32. What is more
than a bound is kept in memory-mapped files until the block ends (`varlora.readout.row_states`); or all are kept in a
folder for other runs of the same frozen layers (`varlora.readout.shared_states`), each computed alone, so that its
numbers do not depend on the batch or on the run that computed it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varlora.readout.lower_layers import LowerLayers, lower_layers_of
from varlora.readout.replaced_forward import AtPositions
from varlora.readout.row_states import RowStates
from varlora.readout.shared_states import SharedRowStates, states_fingerprint
from varlora.readout.trunks import Decoder, Trunk, frozen_mlp, is_adapted, trunk_of

logger = logging.getLogger(__name__)

MEMORY_GIB = 2.0
"""Of states in memory, unless said otherwise."""
TOLERANCE = 0.01
"""Relative; states in a folder are those that are computed bit for bit, unless something rounds that is not known."""


class _Cache(LowerLayers):
    """What enters the first trained layer, by row."""

    by_row = True

    def __init__(self, trunk: Trunk, first: int, states: RowStates | SharedRowStates, *, alone: bool) -> None:
        super().__init__(trunk, first)
        self.by_tokens = states
        self.alone = alone
        self.own: Tensor | None = None

    def states(self, given: Mapping[str, Any]) -> Tensor:
        """Computes the rows that are new, and puts the batch together."""
        rows = self.trunk.rows(given)
        own = rows.own
        self.own = None if bool(own.all()) else own.flatten().nonzero()[:, 0]
        kind = own.device.type
        half = str(torch.get_autocast_dtype(kind)).encode() if torch.is_autocast_enabled(kind) else b""
        keys = [half + tokens for tokens in rows.tokens()]
        if self.alone and self.batch is None:
            self._check(rows.alone(0), keys[0])
        new = {key: i for i, key in enumerate(keys) if key not in self.by_tokens}  # each once
        if new and not self.alone:
            hidden = self.compute(rows.batch(list(new.values())))
            for row, (key, i) in enumerate(new.items()):
                self.by_tokens[key] = hidden[row][own[i]].clone()
        elif new:
            for key, i in new.items():
                self.by_tokens[key] = self.compute(rows.alone(i))[0]
        first = self.by_tokens[keys[0]]
        batch = torch.zeros(*own.shape, first.shape[-1], dtype=first.dtype, device=own.device)
        for i, key in enumerate(keys):
            batch[i, own[i]] = self.by_tokens[key].to(own.device)
        return batch

    def own_positions(self, layer: nn.Module, shape: tuple[int, ...]) -> Tensor | None:
        """Where in the batch (B, T) its rows' own tokens are, for a layer's MLP; None where all are to be computed."""
        if self.is_off or self.batch is None or self.batch.shape[:-1] != shape or frozen_mlp(layer) is None:
            return None
        return self.own

    def _after_trunk(self, module: nn.Module, *_: Any) -> None:
        """Ends a call: what is computed again later, in a backward pass, is so at every position."""
        super()._after_trunk(module)
        if not self.computing and module is self.trunk.module:
            self.own = None

    def _check(self, row: Mapping[str, Any], key: bytes) -> None:
        """Computes a row anew, whether or not its states are known: what is in a folder must be what is computed.

        Raises:
            ValueError: it is not.
        """
        computed = self.compute(row)[0]
        if key not in self.by_tokens:
            self.by_tokens[key] = computed
            return
        there = self.by_tokens[key].to(computed.device)
        largest = computed.abs().amax()
        if there.shape != computed.shape or not bool((there - computed).abs().amax() <= TOLERANCE * largest):
            where = self.by_tokens.folder
            raise ValueError(
                f"the states of frozen layers in {where} are not those that this model computes. Delete that folder, "
                "or give another frozen_layers_dir."
            )


@contextmanager
def cached_frozen_layers(
    model: nn.Module,
    *,
    memory: float = MEMORY_GIB,
    folder: Path | None = None,
    shared: bool = False,
) -> Iterator[int]:
    """Within the block the model's lower layers, up to the first that is adapted, are computed once per row.

    A call that asks a decoder for its keys and values (`generate`) is computed by the whole model. In a block of its
    own model it goes on with that one's states.

    Args:
        model: an encoder with its adapter (BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, MPNet, DeBERTa-v2 and -v3,
            DistilBERT, and whatever else has `embeddings` beside `encoder.layer` or `transformer.layer`), its batches
            padded on the right; or a decoder of one of the families of `varlora.readout.trunks.DECODERS`, its batches
            padded on either side.
        memory: GiB of states to hold in memory, on the model's device; the others are in files.
        folder: where the files go; None: the system's temporary folder.
        shared: keep all states in `folder`, for other blocks and processes, and take from there what is known. Rows
            are computed alone, and `memory` bounds what waits to be written. A folder that is not there is not made:
            states are kept as otherwise then.

    Yields:
        How many layers are cached.

    Raises:
        ValueError: it is no such model, its embeddings are adapted or train, or its first layer is or does.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=16)
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=3, **sizes))
        >>> for p in [*model.bert.embeddings.parameters(), *model.bert.encoder.layer[:2].parameters()]:
        ...     _ = p.requires_grad_(False)
        >>> with cached_frozen_layers(model) as layers:
        ...     layers
        2
    """
    trunk = trunk_of(model)
    adapted = [is_adapted(layer) for layer in trunk.layers]
    first = adapted.index(True) if any(adapted) else len(adapted)
    if is_adapted(trunk.embeddings) or first in (0, len(adapted)):
        raise ValueError(
            "cache_frozen_layers needs frozen layers below the first that is adapted, but the embeddings or the lowest "
            "layer train, or no layer does. Adapt upper layers only (lora_layers, lora_target_modules), or leave the "
            "option out."
        )
    if lower_layers_of(trunk) is not None:
        yield first
        return
    states: RowStates | SharedRowStates
    if shared and folder is not None and folder.is_dir():
        states = SharedRowStates(folder, states_fingerprint(trunk, first), memory=int(memory * 2**30))
    else:
        states = RowStates(memory=int(memory * 2**30), folder=None if shared else folder)
    cache = _Cache(trunk, first, states, alone=shared)
    mlps = [
        AtPositions(module, functools.partial(cache.own_positions, layer))
        for layer in trunk.layers[first:]
        if isinstance(trunk, Decoder) and (module := frozen_mlp(layer)) is not None
    ]
    logger.info("the lower %d of %d layers are frozen and computed once for each row", first, len(adapted))
    try:
        with cache.left_out():
            for mlp in mlps:
                mlp.put()
            yield first
    finally:
        for mlp in mlps:
            mlp.remove()
        states.close()
