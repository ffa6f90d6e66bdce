"""Sampled weights in the forward pass, noise · gradient in the backward pass.

The parameters hold the posterior mean at all times. For the span of one module's forward, `NoiseController`
shadows each trained tensor of that module by `mean + noise`; the autograd node that made the sample adds
noise · gradient to a running sum when the backward pass reaches it. So saving, evaluating, an exception or
an interrupt can never see perturbed weights, and gradient accumulation, clipping, checkpointing, mixed
precision and data parallelism need no special cases:

- One draw belongs to one forward-and-backward pass: new noise is drawn at the first training forward after a
  backward pass has used the last one. Recomputation in a backward pass sees the same noise.
- Losses are already scaled by their share of the step (by 1/k under accumulation over k micro-batches), so
  the products are summed, exactly as the gradients are.
- Every rank multiplies its own gradient by its own noise; only the products are averaged over ranks.
- Noise is a function of (seed, step, draw, rank, name), never of a global generator's state, so a resumed run
  draws what the uninterrupted run would have drawn.

Norm clipping acts on the gradient, hence on the mean's step; the products estimate the Hessian of the loss
itself and are left unclipped.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from varlora.optim import IVON
from varlora.optim.wrapped import unwrapped


class NoiseWarning(UserWarning):
    """The noise will be drawn, but not quite as asked."""


class NoiseSource(Protocol):
    """Where standard-normal noise comes from."""

    def draw(self, name: str, like: Tensor, *, step: int, draw: int, rank: int) -> Tensor:
        """Returns a standard-normal tensor of `like`'s shape, dtype and device.

        Args:
            name: the tensor's name, the same on every rank and in every run.
            like: gives shape, dtype and device.
            step: index of the optimizer step, from 0.
            draw: index of the draw within the step, from 0.
            rank: the data-parallel rank.
        """


@dataclass
class CounterNoise:
    """Noise that depends on nothing but (seed, step, draw, rank, name).

    Args:
        seed: any integer; runs with the same seed draw the same noise.

    Example:
        >>> import torch
        >>> source, like = CounterNoise(seed=0), torch.zeros(2)
        >>> first = source.draw("w", like, step=3, draw=0, rank=0)
        >>> torch.equal(first, CounterNoise(seed=0).draw("w", like, step=3, draw=0, rank=0))
        True
        >>> torch.equal(first, source.draw("w", like, step=3, draw=0, rank=1))
        False
    """

    seed: int = 0
    _generators: dict[torch.device, torch.Generator] = field(default_factory=dict, init=False, repr=False)

    def draw(self, name: str, like: Tensor, *, step: int, draw: int, rank: int) -> Tensor:
        """See `NoiseSource.draw`."""
        key = repr((self.seed, step, draw, rank, name)).encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
        if like.device not in self._generators:
            self._generators[like.device] = torch.Generator(like.device)
        generator = self._generators[like.device].manual_seed(seed)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


@dataclass
class ReplayedNoise:
    """Replays given noise, one tensor per call and name: for tests and for comparing implementations.

    Args:
        draws: per name, the standard-normal tensors in the order in which they are asked for.

    Example:
        >>> import torch
        >>> source = ReplayedNoise({"w": [torch.ones(2), torch.zeros(2)]})
        >>> source.draw("w", torch.empty(2), step=0, draw=0, rank=0)
        tensor([1., 1.])
    """

    draws: Mapping[str, Sequence[Tensor]]
    _calls: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def draw(self, name: str, like: Tensor, *, step: int, draw: int, rank: int) -> Tensor:
        """See `NoiseSource.draw`; raises IndexError after the last given draw."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        return self.draws[name][call].to(like).view_as(like)


@dataclass
class _Site:
    """One trained parameter: its present noise and the sum of its noise · gradient products."""

    name: str
    parameter: nn.Parameter  # as the optimizer holds it (under FSDP2, the shard)
    noise: Tensor | None = None
    product: Tensor | None = None


@dataclass(frozen=True)
class _Place:
    """Where a module reads a trained parameter: `holder.attribute`."""

    site: _Site
    holder: nn.Module
    attribute: str


class _Sample(torch.autograd.Function):
    """mean ↦ mean + noise; the backward pass adds noise · gradient to the site."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, mean: Tensor, noise: Tensor, record: Callable[[Tensor], None]) -> Tensor:
        sample = (mean + noise).to(parameter.dtype)
        if sample.dtype != mean.dtype:
            noise = sample.to(mean.dtype) - mean  # the noise that the forward pass really sees
        ctx.noise, ctx.record = noise, record
        return sample

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.record(gradient.to(ctx.noise.dtype) * ctx.noise)
        return gradient, None, None, None


def _uncompiled(function: Callable[..., Any], *, but_callees: bool = False) -> Callable[..., Any]:
    """Keeps torch.compile out of this function and, unless `but_callees`, out of what it calls."""
    return torch.compiler.disable(function, recursive=not but_callees)  # type: ignore[no-any-return,no-untyped-call]


@_uncompiled
def _unshadow(places: Sequence[_Place]) -> None:
    for place in places:
        place.holder.__dict__.pop(place.attribute, None)


class _SampledForward:
    """A module's forward, at sampled weights while the controller is active.

    A wrapper with `finally` rather than a pair of hooks: hooks do not run on KeyboardInterrupt.
    """

    def __init__(self, controller: NoiseController, scope: nn.Module, places: Sequence[_Place]) -> None:
        functools.update_wrapper(self, scope.forward)
        self.forward = scope.forward
        self.replaced = scope.__dict__.get("forward")  # e.g. accelerate's autocast
        self.controller, self.scope, self.places = controller, scope, places

    def remove(self) -> None:
        """Gives the module its forward back, unless somebody has wrapped this one in the meantime."""
        if self.scope.__dict__.get("forward") is self:
            del self.scope.forward
            if self.replaced is not None:
                self.scope.forward = self.replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.controller._sampling:
            return self.forward(*args, **kwargs)
        try:
            self.controller._shadow(self.places)
            return self.forward(*args, **kwargs)
        finally:
            _unshadow(self.places)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module is not under control: it computes at its own weights."""
        copied = memo[id(self.scope)]
        return functools.partial(type(copied).forward, copied)

    __call__ = _uncompiled(__call__, but_callees=True)


class NoiseController:
    """Draws weights from IVON's posterior in every training forward, and collects noise · gradient for it.

    Create it after the model and the optimizer are in their final form (prepared by accelerate, wrapped for
    data parallelism or not), then call forward, backward and `optimizer.step()` as usual. In evaluation mode,
    or without gradients, the model computes at the mean. A new controller takes the place of one that is still
    attached to the same modules or the same optimizer.

    Covers every module that owns a trained parameter: PEFT's tuner layers (LoRA, DoRA, embeddings),
    `modules_to_save`, and plain modules, so IVON also works without LoRA. State-dict keys do not change.

    Args:
        model: the model; its top-level forward in training mode starts a draw.
        optimizer: IVON, or accelerate's wrapper around it.
        source: the noise; None means `CounterNoise(seed)`.
        seed: the seed of the default source.
        rank: the data-parallel rank; None asks torch.distributed.
        scaler: the GradScaler that scales the loss, if any; None takes it from accelerate's wrapper.

    Raises:
        TypeError: the optimizer is not IVON.
        ValueError: the model owns none of the optimizer's parameters, or some it does not own.

    Example:
        >>> import torch
        >>> from varlora import IVON, NoiseController
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = IVON(model.parameters(), lr=0.1, ess=50.0, hess_init=1.0)
        >>> noise = NoiseController(model, optimizer, seed=1)
        >>> x = torch.ones(8, 3)
        >>> a, b = model(x), model(x)                # the same draw until a backward pass has used it
        >>> bool((a == b).all()), bool((a == model.eval()(x)).all())
        (True, False)
        >>> noise.detach()                           # gives the model back as it was

    Source: estimator arXiv 2402.17641; keeping the parameter at the mean is our design (docs/decisions.md).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        source: NoiseSource | None = None,
        seed: int = 0,
        *,
        rank: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.scaler = scaler if scaler is not None else getattr(optimizer, "scaler", None)
        optimizer = unwrapped(optimizer)
        if not isinstance(optimizer, IVON):
            raise TypeError(f"NoiseController needs varlora's IVON, got {type(optimizer).__name__}.")
        self.optimizer = optimizer
        self.source = source if source is not None else CounterNoise(seed)
        self.rank = rank if rank is not None else (dist.get_rank() if dist.is_initialized() else 0)
        self.model = _unwrapped(model)

        self._draw_index = 0
        self._consumed = True  # whether a backward pass has used the present noise
        self._active = False  # whether forwards (and their recomputation) see sampled weights
        self._before_inference: bool | None = None
        self._sites = self._find_sites()
        self._held = {site.parameter for site in self._sites.values()}
        scopes = _scopes(self.model, self._sites)
        for former in [optimizer.noise, *(getattr(scope.forward, "controller", None) for scope in scopes)]:
            if isinstance(former, NoiseController):  # left behind by a training that was interrupted
                former.detach()
        self._wrapped: list[_SampledForward] = []
        for scope, places in scopes.items():
            wrapped = _SampledForward(self, scope, places)
            scope.forward = wrapped
            self._wrapped.append(wrapped)
        self._hooks = [
            self.model.register_forward_pre_hook(_uncompiled(self._before_forward)),
            self.model.register_forward_hook(_uncompiled(self._after_forward), always_call=True),
        ]
        optimizer.noise = self

    def detach(self) -> None:
        """Removes every hook and forgets pending products; the model and the optimizer are as before."""
        for hook in self._hooks:
            hook.remove()
        for wrapped in self._wrapped:
            wrapped.remove()
        self._hooks, self._wrapped = [], []
        self._active = False
        self.clear()
        if self.optimizer.noise is self:
            self.optimizer.noise = None

    # For the optimizer (`optim.ivon.NoiseStatistics`) -------------------------------------------------------

    def collect(self) -> dict[Tensor, Tensor]:
        """The mean of noise · gradient over draws and ranks, per parameter that took part.

        Raises:
            RuntimeError: no draw took part in a backward pass, or a gradient bypassed its noise.
        """
        sites = list(self._sites.values())
        used = torch.tensor([site.product is not None for site in sites], device=self._device)
        products = [site.product for site in sites]
        if self._world_size > 1:
            used, products = self._average_over_ranks(used, sites)
        if not used.any():
            raise RuntimeError(
                "IVON.step() found no draw to learn from: no backward pass has gone through the sampled weights "
                "since the last step. Call model.train(), run the forward pass through the very model given to "
                "NoiseController (not through a submodule), then loss.backward(), then step()."
            )
        scale = 1.0 / self.scaler.get_scale() if self.scaler is not None else 1.0
        result: dict[Tensor, Tensor] = {}
        bypassed = []
        for site, took_part, product in zip(sites, used.tolist(), products, strict=True):
            p = site.parameter
            if took_part and p.grad is not None and product is not None:
                result[p] = _sharded_like(p, product * scale)
            elif not took_part and p.grad is not None and bool((p.grad != 0).any()):
                bypassed.append(site.name)
        strangers = [
            p
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p not in self._held and p.grad is not None and bool((p.grad != 0).any())
        ]
        if strangers:
            raise RuntimeError(
                f"{len(strangers)} parameters of the optimizer got a gradient but no noise, the first of shape "
                f"{tuple(strangers[0].shape)}: they were frozen, or not yet in the optimizer, when the NoiseController "
                "was created. Create a new NoiseController(model, optimizer) after such a change."
            )
        if bypassed:
            raise RuntimeError(
                f"{len(bypassed)} parameters got a gradient that did not pass through their noise: "
                f"{', '.join(bypassed[:3])}{', ...' if len(bypassed) > 3 else ''}. Their weights are read outside "
                "the forward of the module that owns them (as torch's RNN layers do); freeze them or train them "
                "with another optimizer."
            )
        return result

    def all_agree(self, flag: Tensor) -> bool:
        """Whether `flag` is true on every rank."""
        if self._world_size > 1:
            number = flag.to(self._device, torch.int32)
            dist.all_reduce(number, dist.ReduceOp.MIN)
            return bool(number)
        return bool(flag)

    def clear(self) -> None:
        """Forgets the products collected since the last step."""
        for site in self._sites.values():
            site.product = None

    def after_step(self) -> None:
        """Ends the step: the next training forward starts the next step's first draw."""
        self.clear()
        self._draw_index, self._consumed, self._active = 0, True, False

    # Forward and backward -----------------------------------------------------------------------------------

    @property
    def _sampling(self) -> bool:
        """Whether a module reads sampled weights now: in training mode, or recomputed within a backward pass."""
        return self._active and (self.model.training or torch._C._current_graph_task_id() != -1)

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if module is not self.model:  # a copy of it
            return
        if not (self.model.training and torch.is_grad_enabled()):
            self._before_inference, self._active = self._active, False
            return
        if self._consumed:
            self._draw()
        self._active, self._before_inference = True, None

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self.model and self._before_inference is not None:
            self._active, self._before_inference = self._before_inference, None

    @torch.no_grad()
    def _draw(self) -> None:
        if all(site.parameter.grad is None for site in self._sites.values()):
            # Nothing is pending: products that are left belong to a step that was abandoned (a GradScaler
            # that found an overflow, an exception in a loop that went on).
            self.clear()
            self._draw_index = 0
        for site in self._sites.values():
            scale = _full(self.optimizer.noise_scale(site.parameter))
            noise = self.source.draw(
                site.name, scale, step=self.optimizer.step_index, draw=self._draw_index, rank=self.rank
            )
            site.noise = noise * scale
        self._draw_index += 1
        self._consumed = False

    @_uncompiled
    def _shadow(self, places: Sequence[_Place]) -> None:
        """Shadows each parameter by its sample: an instance attribute wins over a registered parameter."""
        for place in places:
            parameter = place.holder._parameters[place.attribute]
            assert parameter is not None
            assert place.site.noise is not None
            mean = parameter.detach() if parameter.dtype == place.site.noise.dtype else self._master(place.site)
            record = functools.partial(self._record, place.site)
            sample = _Sample.apply(parameter, mean, place.site.noise, record)  # type: ignore[no-untyped-call]
            place.holder.__dict__[place.attribute] = sample

    def _master(self, site: _Site) -> Tensor:
        return _full(self.optimizer.mean(site.parameter))

    def _record(self, site: _Site, product: Tensor) -> None:
        site.product = product if site.product is None else site.product.add_(product)
        self._consumed = True

    # Finding the parameters ---------------------------------------------------------------------------------

    def _find_sites(self) -> dict[str, _Site]:
        held = {p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad}
        names = {p: name for name, p in self.model.named_parameters()}
        if not held & names.keys():
            raise ValueError(
                "the optimizer holds no parameter of this model. Create the optimizer from model.parameters() of "
                "the very model that is trained (after get_peft_model)."
            )
        strangers = len(held - names.keys())
        if strangers:
            raise ValueError(f"the optimizer holds {strangers} parameters that are not in this model; leave them out.")
        halves = [names[p] for p in held if p.dtype in (torch.float16, torch.bfloat16)]
        if halves:
            warnings.warn(
                f"{len(halves)} trained parameters are in half precision ({halves[0]}, ...): IVON keeps float32 "
                "copies of them, but noise smaller than their rounding is distorted in the forward pass. Train "
                "the adapter in float32 (PEFT's autocast_adapter_dtype=True does).",
                NoiseWarning,
                stacklevel=3,
            )
        for group in self.optimizer.param_groups:
            group["param_names"] = [names.get(p, "") for p in group["params"]]
        return {name: _Site(name, p) for p, name in sorted(names.items(), key=lambda item: item[1]) if p in held}

    # Ranks --------------------------------------------------------------------------------------------------

    @property
    def _world_size(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    @property
    def _device(self) -> torch.device:
        return next(iter(self._sites.values())).parameter.device

    def _average_over_ranks(self, used: Tensor, sites: Sequence[_Site]) -> tuple[Tensor, list[Tensor | None]]:
        used = used.to(torch.int32)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        parts = [
            (site.product if site.product is not None else torch.zeros_like(_full(self.optimizer.mean(site.parameter))))
            for site in sites
        ]
        flat = torch.cat([part.flatten().to(self._device) for part in parts])
        dist.all_reduce(flat)
        flat /= self._world_size
        averaged = torch.split(flat, [part.numel() for part in parts])
        return used.bool(), [a.view_as(part).to(part.device) for a, part in zip(averaged, parts, strict=True)]


def _unwrapped(model: nn.Module) -> nn.Module:
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


def _scopes(model: nn.Module, sites: Mapping[str, _Site]) -> dict[nn.Module, list[_Place]]:
    """For every module whose forward reads trained parameters: where it reads them.

    That is the owner of the parameter, unless a layer around it reads it on the owner's behalf: PEFT's tuner
    layers (DoRA and embeddings read their submodules' weights), attention's output projection, and whatever
    holds a ParameterList or ParameterDict, which have no forward.
    """
    by_parameter = {id(site.parameter): site for site in sites.values()}
    scopes: dict[nn.Module, list[_Place]] = {}
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
                scopes.setdefault(scope, []).append(_Place(by_parameter[id(parameter)], module, attribute))
        for name, child in module.named_children():
            inner = reader
            if isinstance(module, BaseTunerLayer) and name == "base_layer":
                inner = None
            if inner is None and isinstance(child, (nn.ParameterList, nn.ParameterDict)):
                inner = module
            visit(child, inner)

    visit(model, None)
    return scopes


def _full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _sharded_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Cuts this rank's part out of a tensor that is whole and equal on all ranks, if `parameter` is sharded."""
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(parameter, DTensor):
        return tensor
    mesh = parameter.device_mesh
    whole = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=parameter.placements)
