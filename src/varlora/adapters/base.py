"""A cheap fingerprint of the base model, so that a posterior does not go onto another one of the same shapes unnoticed.

SHA-256 over names, shapes and up to 1024 entries of each of the base model's tensors, at fixed strides, rounded to
bfloat16: a base loaded in bfloat16 or in float32 has one fingerprint. Embeddings have a hash of their own, over the
rows that there were, since a vocabulary may grow later on; what the posterior holds itself is left out, and so is what
was quantised. Where one of two bases is quantised they are compared by what no quantisation packs, all but the weights
of linear layers. A change of a few entries of a large tensor can escape it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from varlora.adapters.tensors import active_adapter, base_module, is_peft_model, live_tensors, unwrapped_model

logger = logging.getLogger(__name__)

_ENTRIES = 1024


def base_fingerprint(model: nn.Module, held: Collection[str], *, rows: int | None = None) -> dict[str, Any] | None:
    """What tells the base model of a posterior from another; plain JSON. None where its weights are not all at hand.

    Args:
        model: the model with its adapter, not merged, or a plain module.
        held: the posterior's keys, whose tensors are no part of the base.
        rows: of the embeddings, those that are read; None: all.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> before = base_fingerprint(model, ["1.weight", "1.bias"])
        >>> _ = model[1].requires_grad_(False).bias.add_(1)
        >>> base_fingerprint(model, ["1.weight", "1.bias"]) == before
        True
        >>> _ = model[0].requires_grad_(False).bias.add_(1)
        >>> base_fingerprint(model, ["1.weight", "1.bias"]) == before
        False
    """
    inner = unwrapped_model(model)
    base = base_module(model)
    named = live_tensors(model, embeddings=is_peft_model(inner) and hasattr(base, "get_input_embeddings"))
    mine = {id(t) for key, t in named.items() if key in held}
    embeddings = {id(t) for layer in _embedding_layers(base) for _, t in _own_tensors(layer)}
    adapter = active_adapter(inner) if is_peft_model(inner) else None
    linear = _linear_weights(base)
    packable = {id(t) for t in linear}
    body, vocabulary, seen, vocabulary_rows = [], [], set[int](), 0
    for name, t in _own_tensors(base, adapter):
        if id(t) in mine or id(t) in seen or not _is_plain(t):
            continue
        if t.is_meta or hasattr(t, "full_tensor"):
            logger.info("the base model's weights are sharded or offloaded, so it gets no fingerprint")
            return None
        seen.add(id(t))
        if id(t) in embeddings:
            vocabulary_rows = len(t)
            vocabulary.append((name, t[: rows if rows is not None else len(t)]))
        else:
            body.append((name, t))
    config = getattr(base, "config", None)
    facts = {name: getattr(config, name, None) for name in ("model_type", "num_attention_heads", "num_key_value_heads")}
    dtypes = {str(t.dtype) for _, t in (*body, *vocabulary)} | {str(getattr(config, "dtype", None))}
    return {
        "config": {name: value for name, value in facts.items() if isinstance(value, (str, int))},
        "sha256": _hash(body),
        "quantized": not all(map(_is_plain, linear)),
        "sha256_unpacked": _hash((name, t) for name, t in body if id(t) not in packable),
        "embeddings": {"rows": vocabulary_rows, "sha256": _hash(vocabulary, last_row=True)} if vocabulary else None,
        "float16": "torch.float16" in dtypes,
    }


def check_base(model: nn.Module, held: Collection[str], expected: Mapping[str, Any] | None, name: str | None) -> None:
    """Refuses a model whose base is not the one that `expected` was taken of.

    Args:
        model: as in `base_fingerprint`.
        held: the same.
        expected: what `base_fingerprint` gave; None (a posterior of a former version, say) is not compared.
        name: of the base model expected, for the message.

    Raises:
        ValueError: another base model. The message says which was expected, what differs and what to do.
    """
    if expected is None:
        return
    embeddings = expected["embeddings"]
    given = base_fingerprint(model, held, rows=embeddings["rows"] if embeddings else None)
    if given is None:
        return
    if given["float16"] != expected["float16"]:
        logger.info("the base model is in float16 here or was in training, so the two are not compared")
        return
    differing = base_differences(given, expected)
    vocabulary = given["embeddings"] or {"rows": 0, "sha256": None}
    if embeddings and (vocabulary["rows"] < embeddings["rows"] or vocabulary["sha256"] != embeddings["sha256"]):
        differing.append("embeddings")
    if differing:
        here = getattr(base_module(model), "name_or_path", None)
        raise ValueError(
            f"this is not the base model that the posterior was trained on ({name or 'which has no name'}): the "
            f"{' and '.join(differing)} of the one given ({here or 'which has no name'}) "
            "differ. Load the base model of training, as it was then: the same files and revision, no part of it drawn "
            "anew or trained further."
        )


def base_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """In what two bases differ, embeddings aside, in words; nothing where one is in float16, which rounds otherwise.

    Args:
        first, second: what `base_fingerprint` gave.

    Example:
        >>> one = base_fingerprint(nn.Linear(1, 1), ["bias"])
        >>> base_differences(one, one)
        []
    """
    if first["float16"] != second["float16"]:
        return []
    packed = first.get("quantized"), second.get("quantized")  # of linear layers one of the two has other bits then
    weights = "sha256" if None in packed or packed[0] == packed[1] else "sha256_unpacked"
    named = {"config": "configuration", weights: "weights"}
    return [words for name, words in named.items() if first[name] != second[name]]


def _own_tensors(module: nn.Module, adapter: str | None = None, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The base model's parameters and saved buffers under the names they had without an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    layer: Any = module
    while isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        if isinstance(layer, ModulesToSaveWrapper) and adapter is not None and adapter in layer.modules_to_save:
            return  # the adapter's copy takes its place
        layer = getattr(layer, "base_layer" if isinstance(layer, BaseTunerLayer) else "original_module")
    module = layer
    for name, t in module._parameters.items():
        if t is not None:
            yield prefix + name, t
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield prefix + name, buffer
    for name, child in module._modules.items():
        if child is not None:
            yield from _own_tensors(child, adapter, f"{prefix}{name}.")


def _embedding_layers(base: nn.Module) -> list[nn.Module]:
    layers = [getattr(base, name, lambda: None)() for name in ("get_input_embeddings", "get_output_embeddings")]
    return [layer for layer in layers if isinstance(layer, nn.Module)]


def _linear_weights(base: nn.Module) -> list[Tensor]:
    """Weights of linear layers, which a quantisation packs."""
    layers: list[Any] = [m for m in base.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    return [layer.weight for layer in layers]


def _is_plain(t: Tensor) -> bool:
    """Whether entries are weights, not packed by a quantisation."""
    return t.is_floating_point() and t.element_size() > 1 and not hasattr(t, "quant_state")


def _hash(tensors: Iterable[tuple[str, Tensor]], *, last_row: bool = False) -> str:
    total = hashlib.sha256()
    for name, t in sorted(tensors, key=lambda named: named[0]):  # a forward may register a parameter anew, last
        total.update(f"{name} {tuple(t.shape)};".encode())
        flat = t.detach().reshape(-1)
        count = min(len(flat), _ENTRIES)
        if count == 0:
            continue
        at = torch.arange(count, device=t.device) * len(flat) // count
        sample = flat[at]
        if last_row and t.ndim > 1:
            sample = torch.cat([sample, t.detach()[-1].reshape(-1)[:_ENTRIES]])
        total.update(sample.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return total.hexdigest()
