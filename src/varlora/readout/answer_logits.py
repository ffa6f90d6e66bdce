"""Next-token logits at a few positions, of a few tokens or of all.

The model is called as in any other forward; for the span of that call its output layer is narrowed: it sees the hidden
states of the wanted positions alone. Of a few tokens it multiplies only their rows, in float32 (a bfloat16 logit near
20 is rounded to multiples of 1/8, which a calibration error can see). The last layer's MLP computes these positions
alone, too, of the families of `varlora.readout.trunks.DECODERS` and where no adapter is in it. What the model does to
its logits afterwards (soft-capping, scaling) it still does itself. Where that does not give the full forward's logits,
or cannot be done (a compiled or replicated model), the wanted logits are picked out of all of them.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlora.adapters.modes import evaluation_mode
from varlora.readout.replaced_forward import AtPositions
from varlora.readout.trunks import decoder_layers, frozen_mlp

logger = logging.getLogger(__name__)

Places = tuple[Tensor, Tensor]
"""Rows and positions in a batch, (P,) each."""
_narrowing_agrees: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
"""What the comparison with the full forward said, by model, of all tokens (True) and of a few; each is made once."""
_TOLERANCE = 0.02
"""Relative; the full forward may round its logits to bfloat16, that is by up to 0.004."""


def answer_logits(model: nn.Module, batch: Mapping[str, Any], token_ids: Sequence[int]) -> Tensor:
    """Logits of some tokens to come next.

    Args:
        model: A causal LM, wrapped or not.
        batch: `input_ids` and `attention_mask` (B, T), padded on either side; optionally `token_type_ids`.
        token_ids: C tokens.

    Returns:
        (B, C), float32 or wider; differentiable.

    Raises:
        ValueError: If a row has no real token.
    """
    inputs, last = decoder_inputs(model, batch), last_positions(batch["attention_mask"])
    return logits_at(model, inputs, (torch.arange(len(last), device=last.device), last), token_ids)


def logits_at(
    model: nn.Module, inputs: Mapping[str, Any], places: Places, token_ids: Sequence[int] | None = None
) -> Tensor:
    """Logits of the tokens that come next at some places of a batch.

    Args:
        model: A causal LM, wrapped or not.
        inputs: What it is called with, as `decoder_inputs` gives it.
        places: Rows and positions, (P,) each; of row 0 at least one.
        token_ids: C tokens; None takes the whole vocabulary, in the data type in which the output layer computes.

    Returns:
        (P, C) or (P, V), float32 or wider; differentiable.
    """
    if _can_narrow(model, inputs, places, token_ids):
        return widened(_narrow_logits(model, inputs, places, token_ids))
    return widened(_full_logits(model, inputs, places, token_ids))


def last_positions(attention_mask: Tensor) -> Tensor:
    """Position of each row's last real token (B,), whichever side is padded.

    Raises:
        ValueError: If a row has no real token.

    Example:
        >>> last_positions(torch.tensor([[0, 1, 1], [1, 1, 0]])).tolist()
        [2, 1]
    """
    real = attention_mask != 0
    if not bool(real.any(1).all()):
        raise ValueError("a row of the batch has no token: its attention mask is all zeros")
    positions = torch.arange(real.shape[1], device=real.device)
    return torch.where(real, positions, -1).amax(1)


def _narrow_logits(
    model: nn.Module, inputs: Mapping[str, Any], places: Places, token_ids: Sequence[int] | None
) -> Tensor:
    """The wanted logits by a narrowed output layer."""
    head = _output_layer(model)
    assert head is not None
    with _narrowed(head, places, token_ids) as rows_only, _narrowed_mlp(base_of(model), places):
        logits: Tensor = model(**inputs).logits
    if logits.shape[:2] != (len(places[0]), 1):
        raise RuntimeError(f"the output layer was not used as expected: logits of shape {tuple(logits.shape)}")
    return logits[:, 0] if rows_only or token_ids is None else logits[:, 0, list(token_ids)]


@contextmanager
def _narrowed(head: nn.Module, places: Places, token_ids: Sequence[int] | None) -> Iterator[bool]:
    """Make the output layer take the wanted positions only, and of a plain Linear the wanted tokens' rows only.

    The weight is read inside the forward, so weights that hooks put in place there (sampled, gathered) count.
    An adapted, quantised, sharded or offloaded layer computes all rows by its own forward.
    """
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward
    rows_only = token_ids is not None and plain and type(head.weight) is nn.Parameter and "forward" not in head.__dict__

    def keep_places(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        rows, positions = (index.to(hidden.device) for index in places)
        return (hidden[rows, positions].unsqueeze(1), *args[1:])

    def multiply_rows(hidden: Tensor) -> Tensor:
        rows = torch.tensor(token_ids, device=hidden.device)
        weight, bias = cast(Tensor, head.weight), cast("Tensor | None", head.bias)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(widened(hidden), widened(weight[rows]), None if bias is None else widened(bias[rows]))

    handle = head.register_forward_pre_hook(keep_places)
    if rows_only:
        head.__dict__["forward"] = multiply_rows
    try:
        yield rows_only
    finally:
        handle.remove()
        if rows_only:
            del head.__dict__["forward"]


@contextmanager
def _narrowed_mlp(base: nn.Module, places: Places) -> Iterator[None]:
    """Make the last layer's MLP compute the wanted positions only: nothing reads the states elsewhere."""
    layers = decoder_layers(base)
    mlp = frozen_mlp(layers[-1]) if layers else None
    if mlp is None:
        yield
        return
    narrowed = AtPositions(mlp, lambda shape: torch.unique(places[0] * shape[1] + places[1]))
    narrowed.put()
    try:
        yield
    finally:
        narrowed.remove()


def _full_logits(
    model: nn.Module, inputs: Mapping[str, Any], places: Places, token_ids: Sequence[int] | None
) -> Tensor:
    """The wanted logits picked out of the model's own, over the whole vocabulary."""
    length = inputs["input_ids"].shape[1]
    kept = length - int(places[1].min())
    if "logits_to_keep" in forward_parameters(model) and (kept == 1 or not _trains(_output_layer(model))):
        inputs = {**inputs, "logits_to_keep": kept}
    logits: Tensor = model(**inputs).logits
    rows, positions = (index.to(logits.device) for index in places)
    wanted = logits[rows, positions - (length - logits.shape[1])]
    return wanted if token_ids is None else wanted[:, list(token_ids)]


def _can_narrow(model: nn.Module, inputs: Mapping[str, Any], places: Places, token_ids: Sequence[int] | None) -> bool:
    """Whether the narrowed output layer may be used: never in a compiled or replicated model; else if it gives
    the full forward's logits on two rows of the model's first batch, without a random number or a graph.

    An output layer that trains sees whole rows where several places of one are wanted, so that whoever watches its
    inputs knows whose they are.
    """
    head, several = _output_layer(model), token_ids is None
    if head is None or is_opaque(model) or (several and _trains(head)):
        return False
    base = base_of(model)
    agreed = _narrowing_agrees.setdefault(base, {})
    if several not in agreed:
        few = {name: _first_two(value) for name, value in inputs.items()}
        there = places[0] < 2
        few_places = places[0][there], places[1][there]
        with evaluation_mode(model), torch.no_grad():
            full = widened(_full_logits(model, few, few_places, token_ids))
            try:
                narrow = widened(_narrow_logits(model, few, few_places, token_ids))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError, TypeError) as error:
                logger.debug("narrowing the output layer of %s failed: %s", type(base).__name__, error)
                agrees = False
            else:
                tolerance = _TOLERANCE * max(1.0, full.nan_to_num(0.0, 0.0, 0.0).abs().max().item())
                agrees = narrow.shape == full.shape and torch.allclose(
                    narrow, full, rtol=0.0, atol=tolerance, equal_nan=True
                )
        if not agrees:
            logger.warning(
                "%s does not give the same logits by the wanted positions and rows of its output layer alone; "
                "computing all of them",
                type(base).__name__,
            )
        agreed[several] = agrees
    return agreed[several]


def decoder_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a causal LM is called with: no cache, and positions counted from the first real token."""
    accepted, mask = forward_parameters(model), batch["attention_mask"]
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": mask}
    if "position_ids" in accepted and not bool(mask[:, 0].all()):
        inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    if "token_type_ids" in batch and "token_type_ids" in accepted:
        inputs["token_type_ids"] = batch["token_type_ids"]
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _first_two(value: Any) -> Any:
    """Of a batch's rows; masks by kind of attention have some, too."""
    if isinstance(value, dict):
        return {name: _first_two(inner) for name, inner in value.items()}
    return value[:2] if isinstance(value, Tensor) else value


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The model and what is inside its wrappers (DDP, compile, PEFT), outermost first."""
    yield model
    for name in ("module", "_orig_mod", "_fsdp_wrapped_module"):
        inner = model._modules.get(name)
        if inner is not None and len(model._modules) == 1:
            yield from _layers(inner)
            return
    base = getattr(model, "get_base_model", None)
    if callable(base):
        yield base()


def base_of(model: nn.Module) -> nn.Module:
    """The model itself, under all wrappers."""
    return list(_layers(model))[-1]


def forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of the model's own forward, under all wrappers."""
    return inspect.signature(type(base_of(model)).forward).parameters


def _output_layer(model: nn.Module) -> nn.Module | None:
    find = getattr(base_of(model), "get_output_embeddings", None)
    layer = find() if callable(find) else None
    return layer if isinstance(layer, nn.Module) else None


def _trains(layer: nn.Module | None) -> bool:
    return layer is not None and any(p.requires_grad for p in layer.parameters())


def is_opaque(model: nn.Module) -> bool:
    """Whether a forward may not see what is changed on the modules inside it: compiled or replicated."""
    return any(
        layer._compiled_call_impl is not None or "_orig_mod" in layer._modules or isinstance(layer, nn.DataParallel)
        for layer in _layers(model)
    )


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or wider where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
