"""Where a model's layers are run, and by what its rows are known there: encoders and decoders.

A row's states depend on its own tokens alone, whatever is padded around it. A decoder's positions are relative (rotary
embeddings) and count up, so that they need not be looked at; an encoder's other inputs (segments, positions) count, as
do positions and branches of a decoder's row that holds several texts (`varlora.readout.packed_rows`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from varlora.readout.packed_rows import PackedRows

DECODERS: Mapping[str, str] = {
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "llama": "Llama",
    "ministral": "Ministral",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
"""Names of the families of decoders, by model type. What they share: token embeddings, rotary positions, and layers
that hand one tensor of hidden states on; attention by causal and sliding-window masks, which the model itself makes for
every layer."""
BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies change with the longest row of a batch."""
BRANCHES = "branches"
"""Name of what a trunk whose lower layers are known by row is called with, beside masks, if its rows are packed."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch that a trunk is called with.

    Attributes:
        inputs: tensors (B, T), from which the lower layers are computed.
        own: (B, T) bool, where each row's own tokens are.
        known_by: names of the inputs that a row's states depend on.
    """

    inputs: dict[str, Tensor]
    own: Tensor
    known_by: tuple[str, ...]

    def tokens(self) -> list[bytes]:
        """What each row's states depend on: its own entries of these inputs."""
        parts = [self.inputs[name].cpu().long() for name in self.known_by]
        names = ",".join(self.known_by).encode()
        rows = zip(torch.stack(parts, -1), self.own.cpu(), strict=True)
        return [names + row[real].numpy().tobytes() for row, real in rows]

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """What the trunk is called with for some rows, padded as they are."""
        return {name: value[rows] for name, value in self.inputs.items()}

    def alone(self, row: int) -> dict[str, Any]:
        """The same for one row, without padding and with the first position 0: the same in every batch."""
        own = self.own[row]
        inputs = {name: self.inputs[name][row][own][None] for name in self.known_by}
        return inputs | {"attention_mask": own[own][None].long()}


@dataclass(frozen=True, kw_only=True)
class _RowsOfTexts(Rows):
    """A batch of packed rows, known by their tokens, positions and branches, of which their masks are made.

    Attributes:
        decoder: whose masks they are.
    """

    decoder: nn.Module

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        return self._call({name: value[rows] for name, value in self.inputs.items()})

    def alone(self, row: int) -> dict[str, Any]:
        return self._call({name: value[row][self.own[row]][None] for name, value in self.inputs.items()})

    def _call(self, some: Mapping[str, Tensor]) -> dict[str, Any]:
        ids, positions, branches = (some[name] for name in ("input_ids", "position_ids", BRANCHES))
        return PackedRows(ids=ids, positions=positions, branches=branches).inputs(self.decoder)


@dataclass(frozen=True, kw_only=True)
class _Layers:
    """A module that runs a model's layers.

    Attributes:
        module: embeds tokens and passes them through each layer.
        embeddings: its own, or those of the tokens.
        layers: from the lowest.
    """

    module: nn.Module
    embeddings: nn.Module
    layers: Sequence[nn.Module]


@dataclass(frozen=True, kw_only=True)
class Encoder(_Layers):
    """A trunk with `embeddings` beside `encoder.layer` or `transformer.layer`, of rows padded on the right."""

    fixed: ClassVar[Mapping[str, Any]] = {}

    def rows(self, given: Mapping[str, Any]) -> Rows:
        """The rows that the module is called with.

        Args:
            given: what it is called with, by name.

        Raises:
            ValueError: rows cannot be known by these inputs.
        """
        inputs = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        if "input_ids" not in inputs or len({tuple(value.shape) for value in inputs.values()}) > 1:
            raise ValueError(
                "cache_frozen_layers looks rows up by input_ids, with an entry for each token in every other input, "
                f"but the encoder is called with {_in_words(inputs)}. Leave the option out."
            )
        _refuse_outputs(given, self.module)
        own = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        if not own[:, 0].all() or (own[:, 1:] > own[:, :-1]).any():
            raise ValueError(
                "cache_frozen_layers needs an encoder's rows padded on the right, and these are not. Set the "
                "tokenizer's padding_side to 'right', or leave the option out."
            )
        return Rows(inputs=inputs, own=own, known_by=tuple(sorted(inputs.keys() - {"attention_mask"})))

    def is_whole(self, given: Mapping[str, Any]) -> bool:
        """Whether a call wants something of every layer, so that none may be left out."""
        return False


@dataclass(frozen=True, kw_only=True)
class Decoder(_Layers):
    """A trunk with `embed_tokens` and `layers` of one of the `DECODERS`, of rows padded on either side."""

    fixed: ClassVar[Mapping[str, Any]] = {"use_cache": False}

    def rows(self, given: Mapping[str, Any]) -> Rows:
        """The rows that the module is called with.

        Args:
            given: what it is called with, by name.

        Raises:
            ValueError: rows cannot be known by these inputs.
        """
        if BRANCHES in given:
            _refuse_outputs(given, self.module)
            inputs = {name: given[name] for name in ("input_ids", "position_ids", BRANCHES)}
            own = inputs[BRANCHES] >= 0
            return _RowsOfTexts(inputs=inputs, own=own, known_by=tuple(sorted(inputs)), decoder=self.module)
        inputs = {name: value for name, value in given.items() if isinstance(value, Tensor) and value.ndim}
        ids = inputs.get("input_ids")
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        known = {"input_ids", "attention_mask", "position_ids"}
        if ids is None or ids.ndim != 2 or not shapes.keys() <= known or isinstance(given.get("attention_mask"), dict):
            raise ValueError(
                "cache_frozen_layers looks a decoder's rows up by input_ids (B, T), with attention_mask and "
                f"position_ids beside them, but it is called with {_in_words(inputs)}. Leave the option out."
            )
        _refuse_outputs(given, self.module)
        own = inputs.get("attention_mask", torch.ones_like(ids))
        if own.shape != ids.shape:
            raise ValueError(
                f"cache_frozen_layers needs an attention_mask with an entry for each token, {tuple(ids.shape)}, but it "
                f"is {tuple(own.shape)}. Leave the option out."
            )
        own = own.bool()
        index = torch.arange(ids.shape[1], device=ids.device)
        first = own.int().argmax(1, keepdim=True)
        if not bool(
            (own == ((index >= first) & (index < first + own.sum(1, keepdim=True)))).all() and own.any(1).all()
        ):
            raise ValueError(
                "cache_frozen_layers needs rows of at least one token, padded on the left or on the right and not in "
                "between, and these are not. Leave the option out."
            )
        if "position_ids" in inputs:
            positions = inputs["position_ids"] = inputs["position_ids"].expand_as(ids)
            if bool(((positions - positions.gather(1, first) != index - first) & own).any()):
                raise ValueError(
                    "cache_frozen_layers needs positions that count up by one in each row, as of rows that are not "
                    "packed, and these do not. Leave the option out."
                )
        return Rows(inputs=inputs, own=own, known_by=("input_ids",))

    def is_whole(self, given: Mapping[str, Any]) -> bool:
        """Whether a call wants something of every layer: their keys and values, to write on from (generation)."""
        return given.get("past_key_values") is not None or bool(given.get("use_cache"))


Trunk = Encoder | Decoder


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a decoder of one of the `DECODERS`, from the lowest; none of another model."""
    decoder = _decoder_of(model)
    return list(decoder.layers) if decoder is not None else []


def frozen_mlp(layer: nn.Module) -> nn.Module | None:
    """A decoder layer's MLP, which takes each position by itself, if it is frozen and not computed anew in backward.

    An adapted one is None: its dropout, noise and per-example gradients are those of all positions.
    """
    mlp = layer._modules.get("mlp")
    return None if mlp is None or is_recomputed(layer) or is_adapted(mlp) else mlp


def is_recomputed(layer: nn.Module) -> bool:
    """Whether a backward pass computes a layer anew (gradient checkpointing)."""
    return layer.training and bool(getattr(layer, "gradient_checkpointing", False))


def is_adapted(module: nn.Module) -> bool:
    """Whether a module trains, or has an adapter: one that is read back changes from draw to draw without training."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(p.requires_grad for p in module.parameters()) or any(
        isinstance(inner, BaseTunerLayer) for inner in module.modules()
    )


def trunk_of(model: nn.Module) -> Trunk:
    """The trunk of a model, with or without an adapter.

    Raises:
        ValueError: it has none that is known here.
    """
    outer: Any = model
    base: Any = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    if (decoder := _decoder_of(base)) is not None:
        _check_rotary(decoder.module)
        return decoder
    for module in base.modules():
        children = dict(module.named_children())
        for inner in (children.get("encoder"), children.get("transformer")):
            if "embeddings" in children and isinstance(layers := getattr(inner, "layer", None), nn.ModuleList):
                return Encoder(module=module, embeddings=children["embeddings"], layers=list(layers))
    raise ValueError(
        "cache_frozen_layers needs an encoder with 'embeddings' and 'encoder.layer' (BERT, RoBERTa, ELECTRA, ...) or a "
        f"decoder of the families {', '.join(DECODERS.values())}, and this model, {type(base).__name__}, is neither. "
        "Leave the option out."
    )


def call_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a module's forward is called with, by name."""
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | dict(kwargs)


def _decoder_of(model: nn.Module) -> Decoder | None:
    if getattr(getattr(model, "config", None), "model_type", None) in DECODERS:
        for module in model.modules():
            children = dict(module.named_children())
            if "embed_tokens" in children and isinstance(layers := children.get("layers"), nn.ModuleList):
                return Decoder(module=module, embeddings=children["embed_tokens"], layers=list(layers))
    return None


def _check_rotary(module: nn.Module) -> None:
    rotary: Any = getattr(module.config, "rope_parameters", None) or {}
    kinds = [rotary, *rotary.values()]
    for kind in kinds:
        if isinstance(kind, Mapping) and (name := kind.get("rope_type")) in BY_LENGTH:
            raise ValueError(
                f"cache_frozen_layers needs rotary positions that are the same in every batch; those of this model "
                f"({name!r}) change with its longest row. Leave the option out."
            )


def _refuse_outputs(given: Mapping[str, Any], module: nn.Module) -> None:
    config = getattr(module, "config", None)
    for name in ("output_hidden_states", "output_attentions"):
        asked = given.get(name)
        if asked or (asked is None and getattr(config, name, False)):
            raise ValueError(f"frozen layers that are cached have no {name.removeprefix('output_')}; leave {name} out.")


def _in_words(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in sorted(inputs.items())) or "no tensor"
