"""The layers of a LoRA adapter: its factors, a new start for them, and their dropout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from varlora.adapters.tensors import active_adapter, is_peft_model, refuse_merged, trained_tensors, unwrapped_model

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


def factor_keys(trained: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The keys of A and B of every adapted module.

    Args:
        trained: the tensors that train, by checkpoint key.
        config: the adapter's configuration.

    Raises:
        ValueError: there is no LoRA module, or one is not linear, or its A and B do not both train.

    Example:
        >>> factor_keys({"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.ones(3, 1)}, None)
        [('q.lora_A.weight', 'q.lora_B.weight')]
    """
    if (config or {}).get("target_parameters"):
        raise ValueError("the factors of target_parameters (stacked experts) are no matrices; leave them out.")
    lora = [key for key in trained if ".lora_" in key and "lora_magnitude_vector" not in key]
    weights = {key for key in lora if key.endswith((".lora_A.weight", ".lora_B.weight"))}
    others = [key for key in lora if key not in weights and not key.endswith(".bias")]
    others += [key for key in weights if trained[key].ndim != 2]
    if others:
        raise ValueError(
            f"LoRA on linear modules is needed, and {sorted(others)[0]} is none. Leave embeddings and "
            "convolutions out of the target modules."
        )
    pairs = [(key, key.replace(".lora_A.", ".lora_B.")) for key in sorted(weights) if key.endswith(".lora_A.weight")]
    if alone := sorted(weights ^ {key for pair in pairs for key in pair}):
        raise ValueError(f"A and B have to train together, but of {alone[0]} and its partner only one trains.")
    if not pairs:
        raise ValueError("there is no LoRA adapter that trains; attach one with peft.get_peft_model.")
    return pairs


def linear_factors(model: nn.Module) -> list[tuple[str, nn.Linear, nn.Linear]]:
    """A's checkpoint key, A and B of every LoRA layer whose A trains, in the order of the model's modules.

    Raises:
        ValueError: there is no LoRA adapter whose A trains, or the adapter of some layer is not plain LoRA on a linear
            layer, or not in float32.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 2)), LoraConfig(r=1, target_modules=["0"]))
        >>> [(key, a.weight.shape, b.weight.shape) for key, a, b in linear_factors(model)]
        [('base_model.model.0.lora_A.weight', torch.Size([1, 3]), torch.Size([2, 1]))]
    """
    model = unwrapped_model(model)
    if not is_peft_model(model):
        raise ValueError("there is no LoRA adapter to be random; wrap the model with peft.get_peft_model first.")
    from peft.tuners.lora import LoraLayer

    keys = {id(p): key for key, p in trained_tensors(model).items()}
    adapter = active_adapter(model)
    factors = []
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in (*layer.lora_A, *layer.lora_embedding_A):
            continue
        _refuse_unsupported(name, layer, adapter)
        lora_a, lora_b = layer.lora_A[adapter], layer.lora_B[adapter]
        assert isinstance(lora_a, nn.Linear)
        assert isinstance(lora_b, nn.Linear)
        if id(lora_a.weight) in keys:
            factors.append((keys[id(lora_a.weight)], lora_a, lora_b))
    if not factors:
        raise ValueError("no lora_A of the active adapter trains, so nothing would be random; unfreeze lora_A.")
    return factors


def reset_adapter(model: nn.Module, seed: int) -> None:
    """Gives the active LoRA adapter a new start, drawn by PEFT's own initialisation, from a seed.

    A is drawn and B is 0 (for embeddings the other way round), and DoRA's magnitudes are the norms of the base weights
    again, so the model computes what its base model does. What else trains stays as it is: heads of
    `modules_to_save`, biases and token rows may be pre-trained, and nothing says which are.

    The draw is made on the CPU, so a seed gives the same values wherever the model is. Parameters keep their storage;
    the global random state is left as it was.

    Args:
        model: a PEFT model; its active adapter is reset.
        seed: decides the draw.

    Raises:
        ValueError: there is no LoRA adapter, it is merged, or its initialisation is not a random draw of its own
            (`init_lora_weights` computed from the base weights or from data, variants of LoRA other than DoRA).

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoraConfig(r=1, target_modules=["0"]))
        >>> key = "base_model.model.0.lora_A.weight"
        >>> before = trained_tensors(model)[key].detach().clone()
        >>> reset_adapter(model, seed=1)
        >>> torch.equal(trained_tensors(model)[key], before)
        False
    """
    peft_model = unwrapped_model(model)
    if not is_peft_model(peft_model):
        raise ValueError("the model has no LoRA adapter to start anew; attach one with peft.get_peft_model.")
    from peft import LoraConfig, PeftType
    from peft.tuners.lora import LoraLayer

    adapter = active_adapter(peft_model)
    config = peft_model.peft_config[adapter]
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:
        raise ValueError(f"the adapter is by {type(config).__name__}; only LoRA adapters can be started anew.")
    start = config.init_lora_weights
    if start is not True and start != "gaussian":
        raise ValueError(
            f"init_lora_weights={start!r} is no random start, so it cannot be drawn again with another seed. Use "
            "init_lora_weights=True or 'gaussian'."
        )
    refuse_merged(peft_model)
    layers: list[Any] = [
        module for module in peft_model.modules() if isinstance(module, LoraLayer) and adapter in module.r
    ]
    for layer in layers:
        if adapter in layer.lora_variant and adapter not in layer.lora_magnitude_vector:
            raise ValueError(
                f"the adapter is of the kind {type(layer.lora_variant[adapter]).__name__}, whose start varlora does "
                "not know; use plain LoRA or DoRA."
            )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for layer in layers:
            with _on_cpu(_factors(layer, adapter)):
                layer.reset_lora_parameters(adapter, start)
        for layer in layers:
            if adapter in layer.lora_magnitude_vector:
                held = layer.lora_magnitude_vector[adapter]
                layer.lora_variant[adapter].init(layer, adapter_name=adapter)  # makes a new module
                held.weight.copy_(layer.lora_magnitude_vector[adapter].weight)
                layer.lora_magnitude_vector[adapter] = held


def dropout_modules(model: nn.Module) -> dict[str, nn.Dropout]:
    """The active LoRA adapter's dropout modules, by name; empty where its dropout rate is 0, or without an adapter.

    The model's own dropout is not among them, nor that of adapted embeddings, which PEFT makes but never applies.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> base = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        >>> model = get_peft_model(base, LoraConfig(r=1, target_modules=["0"], lora_dropout=0.1))
        >>> dropout_modules(model)
        {'base_model.model.0.lora_dropout.default': Dropout(p=0.1, inplace=False)}
    """
    return {name: dropout for name, (_, dropout) in _dropout_sites(model).items()}


@contextmanager
def dropout_on(model: nn.Module, rate: float) -> Iterator[None]:
    """Within the block the active LoRA adapter drops its inputs at `rate`; every other module keeps its mode.

    Masks come from the global generator of the inputs' device.

    Args:
        model: a PEFT model.
        rate: the probability with which an input is dropped.

    Raises:
        ValueError: the adapter has no dropout, or is merged.
    """
    refuse_merged(unwrapped_model(model))
    sites = _dropout_sites(model)
    if not sites:
        raise ValueError(
            "the model's adapter has no dropout (lora_dropout=0), so every pass would be the same. Train with "
            "lora_dropout > 0 to predict with dropout masks."
        )
    before = [(layer, layer.training, dropout, dropout.training, dropout.p) for layer, dropout in sites.values()]
    try:
        for layer, dropout in sites.values():
            layer.training = dropout.training = True  # DoRA asks the layer, plain LoRA its dropout; the base is neither
            dropout.p = rate
        yield
    finally:
        for layer, layer_mode, dropout, dropout_mode, p in before:
            layer.training, dropout.training, dropout.p = layer_mode, dropout_mode, p


def _dropout_sites(model: nn.Module) -> dict[str, tuple[Any, nn.Dropout]]:
    """Where the active adapter applies dropout, layer and dropout module, by the latter's name."""
    peft_model = unwrapped_model(model)
    if not is_peft_model(peft_model):
        return {}
    from peft.tuners.lora import Embedding, LoraLayer

    adapter = active_adapter(peft_model)
    sites: dict[str, tuple[Any, nn.Dropout]] = {}
    for name, layer in peft_model.named_modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer, Embedding) and adapter in layer.lora_dropout:
            dropout = layer.lora_dropout[adapter]
            if isinstance(dropout, nn.Dropout) and dropout.p > 0:
                sites[f"{name}.lora_dropout.{adapter}"] = (layer, dropout)
    return sites


def _factors(layer: LoraLayer, adapter: str) -> list[nn.Parameter]:
    """The parameters that PEFT's initialisation writes."""
    modules = [held[adapter] for held in (layer.lora_A, layer.lora_B) if adapter in held]
    embeddings = [held[adapter] for held in (layer.lora_embedding_A, layer.lora_embedding_B) if adapter in held]
    return [*(p for module in modules for p in module.parameters()), *embeddings]


@contextmanager
def _on_cpu(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block the parameters are float32 on the CPU; then the values are copied to where they were."""
    own = [(p, p.data) for p in parameters]
    try:
        for p, data in own:
            p.data = data.to("cpu", torch.float32, copy=True)
        yield
    finally:
        for p, data in own:
            p.data = data.copy_(p.data)


def _refuse_unsupported(name: str, layer: LoraLayer, adapter: str) -> None:
    from peft.tuners.lora.layer import ParamWrapper

    reason = None
    if adapter in layer.lora_embedding_A:
        reason = "is an embedding; leave it out of target_modules"
    elif not isinstance(layer.lora_A[adapter], nn.Linear):
        reason = f"adapts a {type(layer.get_base_layer()).__name__}; leave it out of target_modules"
    elif isinstance(layer, ParamWrapper):
        reason = "adapts a bare parameter; leave out target_parameters"
    elif variant := getattr(layer, "lora_variant", {}).get(adapter):
        reason = f"is a LoRA variant ({variant.__name__ if isinstance(variant, type) else type(variant).__name__})"
        reason += "; use plain LoRA, without use_dora and the like"
    elif layer.lora_A[adapter].weight.dtype not in (torch.float32, torch.float64):
        reason = (
            f"has its adapter in {layer.lora_A[adapter].weight.dtype}, too coarse for a posterior's steps; keep the "
            "adapter in float32 (PEFT's autocast_adapter_dtype=True) whatever the base model's dtype"
        )
    if reason is not None:
        raise ValueError(f"a random lora_A needs plain LoRA on linear layers, but {name} {reason}.")
