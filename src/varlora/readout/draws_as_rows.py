"""Several draws of a model's weights in one forward: the rows repeated for each, every adapted layer by its own draw.

    rows 0 … B−1 of draw 0, rows 0 … B−1 of draw 1, …        y_k = W x_k + s · B_k A_k x_k

The frozen weights W multiply all rows at once, so that they are read from memory once; A and B of all draws multiply by
batched products. Layers below the first that a draw changes see the same rows under every draw and are computed once
for all of them, where the model is of a known kind (`varlora.readout.trunks`).

What a draw holds has to be weights and biases of linear layers that are called as modules: LoRA on linear layers of any
precision, and trained heads that are made of linear layers. A mixture's experts see the tokens that are sent to them,
which differ between draws; its attention and shared experts see all.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlora.adapters.tensors import active_adapter, live_tensors, unwrapped_model
from varlora.readout.answer_logits import is_opaque
from varlora.readout.lower_layers import LowerLayers, lower_layers_of
from varlora.readout.replaced_forward import ReplacedForward
from varlora.readout.trunks import Trunk, trunk_of


class NotAsRowsError(ValueError):
    """Draws of these tensors cannot be rows of one forward."""


class DrawsAsRows:
    """A model's linear layers with the weights of several draws.

    Args:
        model: the model, whose own weights stay as they are.
        keys: checkpoint keys of the tensors that a draw holds.

    Raises:
        NotAsRowsError: some tensor is used in another way than as a linear layer's weight or bias.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> rows = DrawsAsRows(model, ["weight"])
        >>> with rows.of([{"weight": torch.tensor([[2.0]])}, {"weight": torch.tensor([[3.0]])}]):
        ...     model(torch.tensor([[1.0], [10.0]]).repeat(2, 1)).flatten().tolist()
        [2.0, 20.0, 3.0, 30.0]
    """

    def __init__(self, model: nn.Module, keys: Collection[str]) -> None:
        if is_opaque(model):
            raise NotAsRowsError("the model is compiled or replicated")
        self._layers: dict[int, _Linear] = {}
        self._places: dict[str, tuple[_Linear, str]] = {}
        live = live_tensors(model)
        owners = _owners(model)
        aside = _read_as_weights(model)
        for key in keys:
            if key not in live or len(found := owners.get(id(live[key]), [])) != 1:
                raise NotAsRowsError(f"{key} is no parameter of one module alone")
            module, name = found[0]
            kind = type(module)
            if kind is not nn.Linear or "forward" in module.__dict__ or id(module) in aside:
                raise NotAsRowsError(f"{key} is used in another way than as the {name} of a linear layer")
            if "experts" in key.split("."):
                raise NotAsRowsError(f"{key} belongs to one of several experts, whose rows differ between draws")
            layer = self._layers.setdefault(id(module), _Linear(module))
            self._places[key] = layer, name
        self._lower = _lower_of(model, self._layers)

    @property
    def shares_lower_layers(self) -> bool:
        """Whether layers that no draw changes are computed once for all of them."""
        return self._lower is not None

    @contextmanager
    def of(self, draws: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
        """Within the block the model takes rows of these draws, a block of as many rows for each draw in turn.

        Args:
            draws: values by checkpoint key; converted to the parameters' dtype and device.

        Raises:
            ValueError: a draw's shapes are not the model's.
        """
        for key, (layer, name) in self._places.items():
            live: Tensor = getattr(layer.module, name)
            if wrong := [tuple(draw[key].shape) for draw in draws if draw[key].shape != live.shape]:
                raise ValueError(f"{key} is {tuple(live.shape)} in the model and {wrong[0]} in a draw.")
            layer.values[name] = torch.stack([draw[key].to(live.device, live.dtype) for draw in draws])
        self.select(0, len(draws))
        with ExitStack() as stack:
            if self._lower is not None:
                stack.enter_context(self._lower.left_out())
                stack.callback(self._lower.forget)
            for layer in self._layers.values():
                stack.callback(layer.values.clear)
                stack.callback(layer.remove)
                layer.put()
            yield

    def select(self, first: int, count: int) -> None:
        """Of the block's draws, takes these alone from here on."""
        for layer in self._layers.values():
            layer.first, layer.count = first, count
        if self._lower is not None:
            self._lower.count = count


class _Linear(ReplacedForward):
    """A linear layer's forward, each block of rows by its own draw of the weight, the bias or both."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}
        self.first, self.count = 0, 1

    def __call__(self, x: Tensor) -> Tensor:
        chosen = slice(self.first, self.first + self.count)
        weights, biases = (self.values[name][chosen] if name in self.values else None for name in ("weight", "bias"))
        weight, bias = cast(Tensor, self.module.weight), cast("Tensor | None", self.module.bias)
        if self.count == 1:
            weight = weight if weights is None else weights[0]
            return F.linear(x, weight, bias if biases is None else biases[0])
        if len(x) % self.count:
            raise RuntimeError(f"{len(x)} rows are not those of {self.count} draws")
        blocks = x.reshape(self.count, -1, x.shape[-1])
        products: Tensor = F.linear(blocks, weight) if weights is None else blocks @ weights.mT
        if biases is not None:
            products = products + biases[:, None].to(products.dtype)
        elif bias is not None:
            products = products + bias.to(products.dtype)
        return products.reshape(*x.shape[:-1], products.shape[-1])


class _OncePerBatch(LowerLayers):
    """The lower layers of rows that stand there once for each of `count` draws, computed once, also for more calls.

    Where keys and values are kept (generation), the lower layers' are those of one draw's rows for as long as all draws
    have the same tokens, and are repeated once they differ. Of the last prompts they are remembered, for the draws that
    write behind the same ones in another call.
    """

    def __init__(self, trunk: Trunk, first: int) -> None:
        super().__init__(trunk, first)
        self.count = 1
        self.known: tuple[dict[str, Any], Tensor] | None = None
        self.rows: int | None = None
        """Of a call that keeps keys and values: how many are computed below, where it is one draw's alone."""
        self.cache: Any = None
        """Of a call with prompts alone: where their keys and values go."""
        self.prompts: _Prompts | None = None

    def states(self, given: Mapping[str, Any]) -> Tensor:
        """What enters the first layer that a draw changes, repeated for each."""
        rows = _num_rows(given)
        if rows % self.count:
            raise RuntimeError(f"{rows} rows are not those of {self.count} draws")
        once = {name: _part(value, rows, rows // self.count) for name, value in given.items()}
        if self.known is None or not _same(self.known[0], once):
            self.known = once, self.compute(once)
        return self.known[1].repeat(self.count, 1, 1)

    def begin(self, given: Mapping[str, Any]) -> None:
        """Sees whether one draw's rows will do below, or are known already."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        self.rows = self.cache = None
        rows, cache = _num_rows(given), given.get("past_key_values")
        if rows % self.count or not isinstance(cache, DynamicCache | None):
            return
        layers: list[Any] = list(cache.layers[: self.number]) if cache is not None else []
        written = [layer for layer in layers if layer.get_seq_length()]
        if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers) or (
            written and len(written[0].keys) == rows
        ):
            return
        if not all(_is_repeated(value, rows, self.count) for value in given.values()):
            for layer in written:
                layer.keys, layer.values = (t.repeat(self.count, 1, 1, 1) for t in (layer.keys, layer.values))
            return
        self.rows = rows // self.count
        if written or len(layers) < self.number:
            return
        once = {name: _part(value, rows, self.rows) for name, value in given.items() if name != "past_key_values"}
        self.cache = cache
        if self.prompts is None or not _same(self.prompts.given, once):
            self.prompts = _Prompts(once)

    def run(self, below: ReplacedForward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a layer returns, for one draw's rows where they will do; of the embeddings, for all."""
        if self.computing or self.rows is None or below.module is self.trunk.embeddings:
            return super().run(below, args, kwargs)
        rows = self.rows * self.count
        if self.cache is not None and self.prompts is not None and self.prompts.hidden is not None:
            return _part(args, rows, self.rows)[0]  # what it would be is in `prompts`
        some = {name: _part(value, rows, self.rows) for name, value in kwargs.items()}
        return below.forward(*_part(args, rows, self.rows), **some)

    def _before_first(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.whole or self.computing or self.rows is None or module is not self.first:
            return super()._before_first(module, args)
        hidden = args[0]
        if self.cache is not None and self.prompts is not None:
            if self.prompts.hidden is None:
                self.prompts.hidden = hidden
                self.prompts.layers = [copy.copy(layer) for layer in self.cache.layers[: self.number]]
            else:
                hidden = self.prompts.hidden
                self.cache.layers[: self.number] = [copy.copy(layer) for layer in self.prompts.layers]
        return (hidden.repeat(self.count, 1, 1), *args[1:])

    def forget(self) -> None:
        """Lets the last batch go."""
        self.known = self.batch = self.cache = self.prompts = None


class _Prompts:
    """Prompts that the lower layers have read.

    Args:
        given: what the trunk was called with, of one draw's rows.

    Attributes:
        hidden: what entered the first layer that a draw changes (B, T, H); None before it did.
        layers: keys and values below it, by layer. Writing on makes new tensors and leaves these as they are.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = dict(given)
        self.hidden: Tensor | None = None
        self.layers: list[Any] = []


def _lower_of(model: nn.Module, layers: Mapping[int, _Linear]) -> _OncePerBatch | None:
    """The layers that no draw changes below one that some do; None where there are none, or others leave them out."""
    try:
        trunk = trunk_of(unwrapped_model(model))
    except ValueError:
        return None
    changed = [any(id(module) in layers for module in layer.modules()) for layer in trunk.layers]
    below = any(id(module) in layers for module in trunk.embeddings.modules())
    if below or True not in changed or changed[0] or lower_layers_of(trunk) is not None:
        return None
    return _OncePerBatch(trunk, changed.index(True))


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By a parameter's id, the modules that hold it and by what name."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                owners.setdefault(id(p), []).append((module, name))
    return owners


def _read_as_weights(model: nn.Module) -> set[int]:
    """Modules of LoRA whose weights are read and not called: DoRA and other variants, stacked and bare parameters."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper

    inner = unwrapped_model(model)
    if not isinstance(inner, PeftModel):
        return set()
    adapter = active_adapter(inner)
    return {
        id(held[adapter])
        for layer in map(_untyped, inner.modules())
        if isinstance(layer, LoraLayer)
        and (adapter in layer.lora_variant or isinstance(layer, (ParamWrapper, MultiheadAttention)))
        for held in (layer.lora_A, layer.lora_B)
        if adapter in held
    }


def _untyped(module: Any) -> Any:
    return module


def _num_rows(given: Mapping[str, Any]) -> int:
    ids = given.get("input_ids")
    return len(ids if ids is not None else given["inputs_embeds"])


def _part(value: Any, rows: int, count: int) -> Any:
    """The first rows of whatever has an entry for each; positions alone (T,) have none."""
    if isinstance(value, Tensor):
        return value[:count] if value.ndim > 1 and len(value) == rows else value
    if isinstance(value, dict):
        return {name: _part(inner, rows, count) for name, inner in value.items()}
    return tuple(_part(inner, rows, count) for inner in value) if isinstance(value, tuple) else value


def _is_repeated(value: Any, rows: int, count: int) -> bool:
    """Whether whatever has an entry for each row has the same ones for every draw."""
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != rows:
        return True
    blocks = value.reshape(count, -1)
    return bool((blocks == blocks[:1]).all())


def _same(known: Any, given: Any) -> bool:
    """Whether a trunk is called with the same again."""
    if isinstance(known, Tensor) and isinstance(given, Tensor):
        return known.shape == given.shape and torch.equal(known, given)
    if isinstance(known, dict) and isinstance(given, dict):
        return known.keys() == given.keys() and all(_same(known[name], given[name]) for name in given)
    return known is given
