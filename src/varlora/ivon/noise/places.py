"""Which modules read which trained parameters, whatever the model is wrapped in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from varlora.ivon.noise.arrivals import Arrivals


@dataclass
class Site:
    """One trained parameter: its present sample, and what backward passes have brought since the last step.

    Attributes:
        name: as the model calls it.
        parameter: as the optimizer holds it (under FSDP2, the shard).
        sample: mean + noise of the present draw, in the state's precision.
        noise: of the present draw; None where the optimizer reads no products.
        took_part: whether gradient has come through its sample.
        product: the sum of noise · gradient; None where there is none, or the optimizer reads none.
        arrivals: the ways on which its gradient came.
    """

    name: str
    parameter: nn.Parameter
    sample: Tensor | None = None
    noise: Tensor | None = None
    took_part: bool = False
    product: Tensor | None = None
    arrivals: list[Arrivals] = field(default_factory=list)

    def arrivals_at(self, parameter: Tensor) -> Arrivals:
        """Those at the tensor that is read: the parameter itself, or what FSDP2 gathers it into."""
        for arrivals in self.arrivals:
            if arrivals.of(parameter):
                return arrivals
        for former in self.arrivals[1:]:
            former.remove()
        self.arrivals = [*self.arrivals[:1], Arrivals(parameter)]
        return self.arrivals[-1]

    @property
    def bypassed(self) -> Tensor | None:
        """Whether gradient has arrived that did not come through a sample; None where nothing speaks for it."""
        flags = [arrivals.bypassed for arrivals in self.arrivals if arrivals.bypassed is not None]
        return torch.stack(flags).any() if flags else None

    def clear(self) -> None:
        """Forgets the products, and how gradient has arrived."""
        self.took_part, self.product = False, None
        for arrivals in self.arrivals:
            arrivals.forget()


@dataclass(frozen=True)
class Place:
    """Where a module reads a trained parameter: `holder.attribute`."""

    site: Site
    holder: nn.Module
    attribute: str


def refuse_data_parallel(model: nn.Module) -> None:
    """Refuses a model that one process copies over its devices.

    Raises:
        ValueError: it is, or holds, torch.nn.DataParallel.
    """
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        raise ValueError(
            "torch.nn.DataParallel copies the model in every forward pass, so noise cannot be collected from it. Start "
            "one process per device instead (torchrun or accelerate launch), or make one device visible."
        )


def scopes_of(model: nn.Module, sites: Mapping[str, Site]) -> dict[nn.Module, list[Place]]:
    """For every module whose forward reads trained parameters: where it reads them.

    That is the owner of the parameter, unless a layer around it reads it on the owner's behalf: PEFT's tuner
    layers (DoRA and embeddings read their submodules' weights), attention's output projection, and whatever
    holds a ParameterList or ParameterDict, which have no forward. What several layers hold (PEFT's trainable tokens of
    tied embeddings), each of them reads.
    """
    by_parameter = {id(site.parameter): site for site in sites.values()}
    scopes: dict[nn.Module, list[Place]] = {}
    visited: set[tuple[nn.Module, nn.Module | None]] = set()

    def visit(module: nn.Module, reader: nn.Module | None) -> None:
        if isinstance(module, (BaseTunerLayer, nn.MultiheadAttention)):
            reader = module
        if (module, reader) in visited:
            return
        visited.add((module, reader))
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
