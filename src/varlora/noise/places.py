"""Which modules read which trained parameters, whatever the model is wrapped in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


@dataclass
class Site:
    """One trained parameter: its present noise and the sum of its noise · gradient products."""

    name: str
    parameter: nn.Parameter  # as the optimizer holds it (under FSDP2, the shard)
    noise: Tensor | None = None
    product: Tensor | None = None


@dataclass(frozen=True)
class Place:
    """Where a module reads a trained parameter: `holder.attribute`."""

    site: Site
    holder: nn.Module
    attribute: str


def unwrapped_model(model: nn.Module) -> nn.Module:
    """The model inside data-parallel and torch.compile wrappers, whose names do not depend on them."""
    while True:
        compiled = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel):
            raise ValueError(
                "torch.nn.DataParallel copies the model in every forward pass, so noise cannot be collected from "
                "it. Start one process per device instead (torchrun or accelerate launch), or make one device visible."
            )
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled, nn.Module):
            model = compiled
        else:
            return model


def scopes_of(model: nn.Module, sites: Mapping[str, Site]) -> dict[nn.Module, list[Place]]:
    """For every module whose forward reads trained parameters: where it reads them.

    That is the owner of the parameter, unless a layer around it reads it on the owner's behalf: PEFT's tuner
    layers (DoRA and embeddings read their submodules' weights), attention's output projection, and whatever
    holds a ParameterList or ParameterDict, which have no forward.
    """
    by_parameter = {id(site.parameter): site for site in sites.values()}
    scopes: dict[nn.Module, list[Place]] = {}
    visited: set[nn.Module] = set()

    def visit(module: nn.Module, reader: nn.Module | None) -> None:
        if module in visited:
            return
        visited.add(module)
        if isinstance(module, (BaseTunerLayer, nn.MultiheadAttention)):
            reader = module
        scope = reader if reader is not None else module
        for attribute, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in by_parameter:
                scopes.setdefault(scope, []).append(Place(by_parameter[id(parameter)], module, attribute))
        for name, child in module.named_children():
            inner = reader
            if isinstance(module, BaseTunerLayer) and name == "base_layer":
                inner = None
            if inner is None and isinstance(child, (nn.ParameterList, nn.ParameterDict)):
                inner = module
            visit(child, inner)

    visit(model, None)
    return scopes
