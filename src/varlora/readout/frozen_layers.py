"""The frozen lower layers of a model, computed once per row.

Where only upper layers are adapted, what enters the first of them never changes: it is computed at a row's first visit,
in evaluation mode (no dropout below), and looked up ever after, for every step, draw and split. It is the same model:
names, weights and files stay as they are. The numbers agree with the whole model's as far as its own do from batch to
batch, which is up to rounding. Training agrees with that of the whole model if its frozen part is in evaluation mode,
too. Above, a decoder's MLPs compute the rows' own tokens and no padding, unless they are adapted or computed again in
backward.

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

from varlora.adapters.modes import evaluation_mode
from varlora.readout.replaced_forward import AtPositions, ReplacedForward
from varlora.readout.row_states import RowStates
from varlora.readout.shared_states import SharedRowStates, states_fingerprint
from varlora.readout.trunks import Decoder, Trunk, call_of, frozen_mlp, is_adapted, trunk_of

logger = logging.getLogger(__name__)

MEMORY_GIB = 2.0
"""Of states in memory, unless said otherwise."""
TOLERANCE = 0.01
"""Relative; states in a folder are those that are computed bit for bit, unless something rounds that is not known."""


class _Reached(Exception):
    """What enters the first trained layer."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class _Cache:
    """What enters the first trained layer, by row."""

    def __init__(
        self, trunk: Trunk, first_trained: nn.Module, states: RowStates | SharedRowStates, *, alone: bool
    ) -> None:
        self.trunk = trunk
        self.first_trained = first_trained
        self.states = states
        self.alone = alone
        self.batch: Tensor | None = None
        self.own: Tensor | None = None
        self.computing = False
        self.whole = False

    @property
    def is_off(self) -> bool:
        """Whether the lower layers are to compute."""
        return self.computing or self.whole

    def before_trunk(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Computes the rows that are new, and lays the batch ready."""
        if self.computing or module is not self.trunk.module:
            return None
        given = call_of(module, args, kwargs)
        self.whole = self.trunk.is_whole(given)
        if self.whole:
            return None
        rows = self.trunk.rows(given)
        own = rows.own
        self.own = None if bool(own.all()) else own.flatten().nonzero()[:, 0]
        kind = own.device.type
        half = str(torch.get_autocast_dtype(kind)).encode() if torch.is_autocast_enabled(kind) else b""
        keys = [half + tokens for tokens in rows.tokens()]
        if self.alone and self.batch is None:
            self._check(rows.alone(0), keys[0])
        new = {key: i for i, key in enumerate(keys) if key not in self.states}  # each once
        if new and not self.alone:
            hidden = self._lower(rows.batch(list(new.values())))
            for row, (key, i) in enumerate(new.items()):
                self.states[key] = hidden[row][own[i]].clone()
        elif new:
            for key, i in new.items():
                self.states[key] = self._lower(rows.alone(i))[0]
        first = self.states[keys[0]]
        self.batch = torch.zeros(*own.shape, first.shape[-1], dtype=first.dtype, device=own.device)
        for i, key in enumerate(keys):
            self.batch[i, own[i]] = self.states[key].to(own.device)
        return args, {**kwargs, **{name: value for name, value in self.trunk.fixed.items() if given.get(name) is None}}

    def own_positions(self, layer: nn.Module, shape: tuple[int, ...]) -> Tensor | None:
        """Where in the batch (B, T) its rows' own tokens are, for a layer's MLP; None where all are to be computed."""
        if self.is_off or self.batch is None or self.batch.shape[:-1] != shape or frozen_mlp(layer) is None:
            return None
        return self.own

    def after_trunk(self, module: nn.Module, *_: Any) -> None:
        """Ends a call: what is computed again later, in a backward pass, is so at every position."""
        if not self.computing and module is self.trunk.module:
            self.whole, self.own = False, None

    def _check(self, row: Mapping[str, Tensor], key: bytes) -> None:
        """Computes a row anew, whether or not its states are known: what is in a folder must be what is computed.

        Raises:
            ValueError: it is not.
        """
        computed = self._lower(row)[0]
        if key not in self.states:
            self.states[key] = computed
            return
        there = self.states[key].to(computed.device)
        largest = computed.abs().amax()
        if there.shape != computed.shape or not bool((there - computed).abs().amax() <= TOLERANCE * largest):
            where = self.states.folder
            raise ValueError(
                f"the states of frozen layers in {where} are not those that this model computes. Delete that folder, "
                "or give another frozen_layers_dir."
            )

    @torch.no_grad()
    def _lower(self, inputs: Mapping[str, Tensor]) -> Tensor:
        self.computing = True
        hook = self.first_trained.register_forward_pre_hook(_stop)
        try:
            with evaluation_mode(self.trunk.module):
                self.trunk.module(**inputs, **self.trunk.fixed)
        except _Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
            self.computing = False
        raise AssertionError("the model's forward did not reach its first trained layer")

    def before_first_trained(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Gives the first trained layer the batch, in place of what came from below."""
        if self.is_off or module is not self.first_trained:
            return None
        assert self.batch is not None
        if getattr(module, "gradient_checkpointing", False) and torch.is_grad_enabled():
            self.batch.requires_grad_()  # reentrant checkpointing computes no gradient where no input has one
        return (self.batch, *args[1:])

    def __deepcopy__(self, memo: dict[int, Any]) -> _Cache:
        """A copy of the model keeps the hooks, which do nothing in it."""
        return self


class _Nothing(ReplacedForward):
    """A forward of something below: it computes nothing, and returns zeros of the shape that it would return."""

    def __init__(self, cache: _Cache, module: nn.Module) -> None:
        super().__init__(module)
        self.cache = cache
        self.width = 0
        self.rest: tuple[Any, ...] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.cache.is_off:
            output = self.forward(*args, **kwargs)
            hidden, self.rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
            self.width = hidden.shape[-1]
            return output
        batch = self.cache.batch
        assert batch is not None
        zeros = batch.new_zeros(1).expand(*batch.shape[:-1], self.width)
        return zeros if self.rest is None else (zeros, *self.rest)


def _stop(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _Reached(args[0])


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
    if isinstance(trunk.embeddings.__dict__.get("forward"), _Nothing):
        yield first
        return
    states: RowStates | SharedRowStates
    if shared and folder is not None and folder.is_dir():
        states = SharedRowStates(folder, states_fingerprint(trunk, first), memory=int(memory * 2**30))
    else:
        states = RowStates(memory=int(memory * 2**30), folder=None if shared else folder)
    cache = _Cache(trunk, trunk.layers[first], states, alone=shared)
    replaced: list[ReplacedForward] = [_Nothing(cache, part) for part in (trunk.embeddings, *trunk.layers[:first])]
    if isinstance(trunk, Decoder):
        for layer in trunk.layers[first:]:
            if (mlp := frozen_mlp(layer)) is not None:
                replaced.append(AtPositions(mlp, functools.partial(cache.own_positions, layer)))
    hooks = [
        trunk.module.register_forward_pre_hook(cache.before_trunk, with_kwargs=True),
        trunk.module.register_forward_hook(cache.after_trunk, always_call=True),
        trunk.layers[first].register_forward_pre_hook(cache.before_first_trained),
    ]
    logger.info("the lower %d of %d layers are frozen and computed once for each row", first, len(adapted))
    try:
        for replacement in replaced:
            replacement.put()
        yield first
    finally:
        for hook in hooks:
            hook.remove()
        for replacement in replaced:
            replacement.remove()
        states.close()
