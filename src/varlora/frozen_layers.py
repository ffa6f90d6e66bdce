"""The frozen lower layers of an encoder, computed once per row.

Where only upper layers of an encoder are adapted, what enters the first of them never changes: it is computed at a
row's first visit, in evaluation mode (no dropout below), and looked up ever after. It is the same model: names, weights
and files stay as they are, and predictions agree up to the rounding of a batch's padding. Training agrees with that of
the whole model if its frozen part is in evaluation mode too.

Memory: 4 bytes × tokens of all rows × hidden size, in the memory of the device, until the block ends; 800 rows of 20
tokens at width 384 take 25 MB.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from varlora.modes import evaluation_mode


class _Reached(Exception):
    """What enters the first trained layer."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class _Cache:
    """What enters the first trained layer, by row."""

    def __init__(self, encoder: nn.Module, first_trained: nn.Module) -> None:
        self.encoder = encoder
        self.first_trained = first_trained
        self.parameters = list(inspect.signature(encoder.forward).parameters)
        self.states: dict[tuple[bool, bytes], Tensor] = {}
        self.batch: Tensor | None = None
        self.computing = False

    def before_encoder(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Computes the rows that are new, and lays the batch ready."""
        if self.computing or module is not self.encoder:
            return
        given = dict(zip(self.parameters, args, strict=False)) | dict(kwargs)
        inputs = _checked_inputs(given, module)
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        if not mask[:, 0].all() or (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError(
                "cache_frozen_layers needs rows that are padded on the right, and these are not. Set the tokenizer's "
                "padding_side to 'right', or leave the option out."
            )
        keys = _keys(inputs, mask)
        new = [i for i, key in enumerate(keys) if key not in self.states]
        if new:
            hidden = self._lower({name: value[new] for name, value in inputs.items()})
            for row, i in enumerate(new):
                self.states[keys[i]] = hidden[row][mask[i]].clone()
        first = self.states[keys[0]]
        self.batch = first.new_zeros(*ids.shape, first.shape[-1])
        for i, key in enumerate(keys):
            self.batch[i, mask[i]] = self.states[key]

    @torch.no_grad()
    def _lower(self, inputs: Mapping[str, Tensor]) -> Tensor:
        self.computing = True
        hook = self.first_trained.register_forward_pre_hook(_stop)
        try:
            with evaluation_mode(self.encoder):
                self.encoder(**inputs)
        except _Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
            self.computing = False
        raise AssertionError("the encoder's forward did not reach its first trained layer")

    def before_first_trained(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Gives the first trained layer the batch, in place of what came from below."""
        if self.computing or module is not self.first_trained:
            return None
        assert self.batch is not None
        if getattr(module, "gradient_checkpointing", False) and torch.is_grad_enabled():
            self.batch.requires_grad_()  # reentrant checkpointing computes no gradient where no input has one
        return (self.batch, *args[1:])

    def __deepcopy__(self, memo: dict[int, Any]) -> _Cache:
        """A copy of the model keeps the hooks, which do nothing in it."""
        return self


class _InPlaceOf:
    """A forward of something below: it computes nothing, and returns zeros of the shape that it would return."""

    def __init__(self, cache: _Cache, module: nn.Module) -> None:
        self.cache, self.module = cache, module
        self.forward: Callable[..., Any] = module.forward
        self.own = module.__dict__.get("forward")  # e.g. accelerate's, which brings a layer to its device
        self.width = 0
        self.rest: tuple[Any, ...] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.cache.computing:
            output = self.forward(*args, **kwargs)
            hidden, self.rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
            self.width = hidden.shape[-1]
            return output
        batch = self.cache.batch
        assert batch is not None
        zeros = batch.new_zeros(1).expand(*batch.shape[:-1], self.width)
        return zeros if self.rest is None else (zeros, *self.rest)

    def remove(self) -> None:
        """Gives the module its forward back."""
        self.module.__dict__.pop("forward", None)
        if self.own is not None:
            self.module.forward = self.own

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module computes by itself."""
        copied = memo[id(self.module)]
        return functools.partial(type(copied).forward, copied)


def _checked_inputs(given: Mapping[str, Any], encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors that an encoder is called with, one entry for each token; it is asked for nothing that is cached."""
    inputs = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    shapes = {tuple(value.shape) for value in inputs.values()}
    if "input_ids" not in inputs or len(shapes) > 1:
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in sorted(inputs.items())) or "no tensor"
        raise ValueError(
            "cache_frozen_layers looks rows up by input_ids, with an entry for each token in every other input, but "
            f"the encoder is called with {found}. Leave the option out."
        )
    config = getattr(encoder, "config", None)
    for name in ("output_hidden_states", "output_attentions"):
        asked = given.get(name)
        if asked or (asked is None and getattr(config, name, False)):
            raise ValueError(f"frozen layers that are cached have no {name.removeprefix('output_')}; leave {name} out.")
    return inputs


def _keys(inputs: Mapping[str, Tensor], mask: Tensor) -> list[tuple[bool, bytes]]:
    """What each row's states depend on: its own tokens, and whether they are computed in half precision."""
    autocast = torch.is_autocast_enabled(mask.device.type)
    parts = [inputs[name].cpu() for name in sorted(inputs) if name != "attention_mask"]
    rows = torch.stack(parts, -1)
    return [(autocast, row[own].numpy().tobytes()) for row, own in zip(rows, mask.cpu(), strict=True)]


def _stop(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _Reached(args[0])


@contextmanager
def cached_frozen_layers(model: nn.Module) -> Iterator[int]:
    """Within the block the model's lower layers, up to the first that trains, are computed once per row.

    Args:
        model: an encoder with its adapter: BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, MPNet, DeBERTa-v2 and -v3,
            DistilBERT, and whatever else has `embeddings` beside `encoder.layer` or `transformer.layer`. Its batches
            are padded on the right.

    Yields:
        How many layers are cached.

    Raises:
        ValueError: it is no such encoder, its embeddings train, or its first layer does.

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
    found = next(((m, layers) for m in model.modules() if (layers := _layers_of(m)) is not None), None)
    if found is None:
        raise ValueError(
            "cache_frozen_layers needs an encoder with 'embeddings' and 'encoder.layer' (BERT, RoBERTa, ELECTRA, ...) "
            f"and this model, {_name_of(model)}, is none. Leave the option out."
        )
    encoder, layers = found
    trained = [_trains(layer) for layer in layers]
    first = trained.index(True) if any(trained) else len(layers)
    embeddings: Any = encoder.embeddings
    if _trains(embeddings) or first in (0, len(layers)):
        raise ValueError(
            "cache_frozen_layers needs frozen layers below the first that is adapted, but the embeddings or the lowest "
            "layer train, or no layer does. Adapt upper layers only (lora_target_modules), or leave the option out."
        )
    cache = _Cache(encoder, layers[first])
    below = [_InPlaceOf(cache, module) for module in (embeddings, *layers[:first])]
    hooks = [
        encoder.register_forward_pre_hook(cache.before_encoder, with_kwargs=True),
        layers[first].register_forward_pre_hook(cache.before_first_trained),
    ]
    try:
        for replacement in below:
            replacement.module.forward = replacement
        yield first
    finally:
        for hook in hooks:
            hook.remove()
        for replacement in below:
            replacement.remove()


def _layers_of(module: nn.Module) -> list[nn.Module] | None:
    if isinstance(getattr(module, "embeddings", None), nn.Module):
        for inner in (getattr(module, "encoder", None), getattr(module, "transformer", None)):
            if isinstance(layers := getattr(inner, "layer", None), nn.ModuleList):
                return list(layers)
    return None


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _name_of(model: nn.Module) -> str:
    inner: Any = model
    return type(inner.get_base_model() if hasattr(inner, "get_base_model") else inner).__name__
