"""Which modules of a model get an adapter: by name, by regular expression, in its uppermost layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from peft import LoraConfig, TaskType
from torch import nn
from transformers.pytorch_utils import Conv1D

from varlora.io.nearest import nearest
from varlora.runs.config import RunConfig
from varlora.tasks.encode import Family

ALL_LINEAR = "all-linear"


def lora_config(config: RunConfig, model: nn.Module, family: Family, new_modules: Sequence[str] = ()) -> LoraConfig:
    """PEFT's configuration of a run's adapter.

    Args:
        config: the settings.
        model: the frozen model, which may be on the meta device.
        family: "causal" or "encoder".
        new_modules: names of modules that train whole.

    Raises:
        ValueError: the model lacks a module or a layer that the settings name.
    """
    targets = target_modules_of(config.lora_target_modules)
    where: dict[str, Any] = {}
    inside = ""
    if config.lora_layers is not None:
        if isinstance(targets, str) and targets != ALL_LINEAR:
            raise ValueError(
                f"lora_layers is {config.lora_layers!r}, and lora_target_modules a regular expression, {targets!r}, "
                "which says itself which layers are adapted. Leave one of them out, or name modules (q_proj,v_proj)."
            )
        layers, upper = _upper_layers(config.lora_layers, model)
        where = {"layers_to_transform": upper, "layers_pattern": layers.rsplit(".", 1)[-1]}
        inside = rf"{re.escape(layers)}\.({'|'.join(map(str, upper))})\."
        if targets == ALL_LINEAR:
            targets = _linear_modules(model, inside)
    if isinstance(targets, list):
        _check_targets(model, targets, inside)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM if family == "causal" else TaskType.SEQ_CLS,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        modules_to_save=list(new_modules) or None,
        **where,
    )


def target_modules_of(given: str | None) -> str | list[str] | None:
    """Names, comma-separated; or "all-linear"; or a regular expression over full names, as PEFT takes them.

    Example:
        >>> target_modules_of("q_proj, v_proj"), target_modules_of(r".*layer\\.5\\..*query")
        (['q_proj', 'v_proj'], '.*layer\\\\.5\\\\..*query')
    """
    if given is None or given == ALL_LINEAR or not re.fullmatch(r"[\w., ]+", given):
        return given
    return [name.strip() for name in given.split(",")]


def _upper_layers(given: str, model: nn.Module) -> tuple[str, list[int]]:
    """The name of the model's list of layers, and which of them are meant."""
    text: Any = getattr(model.config, "get_text_config", lambda: model.config)()
    number = text.num_hidden_layers
    lists = (name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == number)
    name = next(lists, None)  # the outermost: experts and the like are lists inside a layer
    if name is None:
        raise ValueError(
            f"lora_layers is {given!r}, and {type(model).__name__} has no list of its {number} layers. Name modules in "
            "lora_target_modules, and leave lora_layers out."
        )
    count = int(given.removeprefix("top:"))
    if count > number:
        raise ValueError(f"lora_layers is {given!r}, and the model has {number} layers: top:1 to top:{number}.")
    return name, list(range(number - count, number))


def _linear_modules(model: nn.Module, inside: str) -> list[str]:
    """Linear modules of some layers, by their names within a layer."""
    linear = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    return sorted({re.sub(f"^{inside}", "", name) for name in linear if re.match(inside, name)})


def _check_targets(model: nn.Module, targets: Collection[str], inside: str) -> None:
    """PEFT is content when one of the names is found; the others would be left out unnoticed."""
    modules = [
        name
        for name, module in model.named_modules()
        if re.match(inside, name) and next(module.parameters(recurse=False), None) is not None
    ]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in modules):
            known = {name.rsplit(".", 1)[-1]: None for name in modules}
            lacking = "the model lacks" if not inside else "the layers of lora_layers lack"
            raise ValueError(f"lora_target_modules names {target!r}, which {lacking}; {nearest(target, known)}")
