"""Sampled weights in the forward pass, noise · gradient in the backward pass.

The parameters hold the posterior mean at all times. For the span of one module's forward, `NoiseController`
shadows each trained tensor of that module by `mean + noise`; the autograd node that made the sample adds
noise · gradient to a running sum when the backward pass reaches it. So saving, evaluating, an exception or
an interrupt can never see perturbed weights, and gradient accumulation, clipping, checkpointing, mixed
precision and data parallelism need no special cases:

- One draw belongs to one forward-and-backward pass, and is keyed by what it is for (`noise.draw_cycle`).
- Losses are already scaled by their share of the step (by 1/k under accumulation over k micro-batches), so
  the products are summed, exactly as the gradients are.
- Every rank multiplies its own gradient by its own noise; only the products are averaged, over the ranks that average
  the gradients (`noise.ranks`).
- A loss counts with the weight that its backward pass gives it (`noise.losses`), and is averaged over ranks likewise.
- A weight that is also read outside its module's forward has gradient without noise there, and a curvature that the
  products miss: the step refuses (`noise.arrivals`).

Norm clipping acts on the gradient, hence on the mean's step; the products estimate the Hessian of the loss
itself and are left unclipped.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from varlora.adapters import check_trainable
from varlora.ivon.blocks import blocks
from varlora.ivon.noise.arrivals import Arrivals
from varlora.ivon.noise.draw_cycle import Draw, DrawCycle
from varlora.ivon.noise.losses import StepLosses
from varlora.ivon.noise.places import Place, Site, refuse_data_parallel, scopes_of
from varlora.ivon.noise.ranks import Groups, averaged, gradient_groups, reduce_, size_of
from varlora.ivon.noise.sampled import Sample, SampledForward, uncompiled
from varlora.ivon.noise.source import NoiseSource
from varlora.posterior.gaussian_optimizer import GaussianOptimizer, missing_members
from varlora.posterior.sharded import sharded_like, whole
from varlora.posterior.wrapped import unwrapped

NOISE_BLOCK = 2**18
"""Entries that are drawn together on a CPU; part of what the noise depends on."""


class NoiseWarning(UserWarning):
    """The noise will be drawn, but not quite as asked."""


class NoiseController(DrawCycle):
    """Draws weights from an optimizer's posterior in every training forward, and collects noise · gradient for it.

    Create it after the model and the optimizer are in their final form (prepared by accelerate, wrapped for
    data parallelism or not), then call forward, backward and `optimizer.step()` as usual. In evaluation mode,
    or without gradients, the model computes at the mean. A new controller takes the place of one that is still
    attached to the same modules or the same optimizer.

    Covers every module that owns a trained parameter: PEFT's tuner layers (LoRA, DoRA, embeddings),
    `modules_to_save`, and plain modules, so IVON also works without LoRA. State-dict keys do not change.

    Args:
        model: the model; its top-level forward in training mode starts a draw.
        optimizer: IVON, or another `varlora.GaussianOptimizer`, or accelerate's wrapper around it.
        source: the noise; None means `CounterNoise(seed)`.
        seed: the seed of the default source.
        rank: the data-parallel rank; None asks torch.distributed.
        scaler: the GradScaler that scales the loss, if any; None takes it from accelerate's wrapper.
        process_group: the processes over which your own code averages the gradients; None takes all. What
            DistributedDataParallel or FSDP2 averages goes by their own group or mesh.

    Raises:
        TypeError: the optimizer holds no Gaussian posterior.
        ValueError: the model owns none of the optimizer's parameters, or some it does not own; nothing of it trains, or
            a saved adapter would not bring it back (`varlora.adapters.check_trainable`).

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
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.scaler = scaler if scaler is not None else getattr(optimizer, "scaler", None)
        inner: GaussianOptimizer = unwrapped(optimizer)
        if missing := missing_members(inner):
            raise TypeError(
                f"NoiseController needs varlora's IVON, or another varlora.GaussianOptimizer; got "
                f"{type(inner).__name__}, which has no {', '.join(missing)}."
            )
        refuse_data_parallel(model)
        super().__init__(model, source=source, seed=seed, rank=rank, optimizer=inner)
        self.optimizer = inner
        check_trainable(self.model)

        self._evaluated = False  # whether forwards in evaluation mode see the draw of `evaluation_draw`
        self._sites = self._find_sites()
        self._held = {site.parameter for site in self._sites.values()}
        self._blocks = self._find_blocks()
        self._losses = StepLosses()
        scopes = scopes_of(self.model, self._sites)
        for former in [inner.noise, *(getattr(scope.forward, "controller", None) for scope in scopes)]:
            if isinstance(former, NoiseController):  # left behind by a training that was interrupted
                former.detach()
        for site in self._sites.values():
            site.arrivals_at(site.parameter)
        self._ranks: dict[Groups, list[Site]] = {}  # the sites by who averages their gradients
        for groups, site in zip(
            gradient_groups(model, (site.parameter for site in self._sites.values()), process_group),
            self._sites.values(),
            strict=True,
        ):
            self._ranks.setdefault(groups, []).append(site)
        self._wrapped: list[SampledForward] = []
        for scope, places in scopes.items():
            wrapped = SampledForward(self, scope, places)
            scope.forward = wrapped
            self._wrapped.append(wrapped)
        self.attach()
        inner.noise = self

    def detach(self) -> None:
        """Removes every hook and forgets pending products; the model and the optimizer are as before."""
        super().detach()
        for wrapped in self._wrapped:
            wrapped.remove()
        self._wrapped = []
        self.clear()
        self._forget_samples()
        for site in self._sites.values():
            for arrivals in site.arrivals:
                arrivals.remove()
            site.arrivals = []
        if self.optimizer.noise is self:
            self.optimizer.noise = None

    @contextmanager
    def evaluation_draw(self, index: int, *, sign: float = 1.0) -> Iterator[None]:
        """Within it, forwards in evaluation mode and without gradients compute at one draw of the present posterior.

        Training's own draws are untouched: the noise depends on (seed, step, index, names), not on the rank, so that
        all ranks see the same weights.

        Args:
            index: which draw of this step, from 0.
            sign: -1 gives the draw opposite to the one of the same index.

        Raises:
            RuntimeError: a training step is under way: there was a forward or backward pass since the last `step`; or,
                within the block, a forward in training mode or with gradients, or a second `evaluation_draw`.

        Example:
            >>> import torch
            >>> from varlora import IVON, NoiseController
            >>> model = torch.nn.Linear(3, 1)
            >>> noise = NoiseController(model, IVON(model.parameters(), lr=0.1, ess=50.0, hess_init=1.0))
            >>> x = torch.ones(1, 3)
            >>> with torch.no_grad(), noise.evaluation_draw(0):
            ...     plus = model.eval()(x)
            >>> with torch.no_grad(), noise.evaluation_draw(0, sign=-1.0):
            ...     minus = model(x)
            >>> torch.allclose((plus + minus) / 2, model(x))
            True
        """
        if self._evaluated:
            raise RuntimeError("evaluation_draw() within evaluation_draw(); leave the first block before the second.")
        pending = any(site.took_part and site.parameter.grad is not None for site in self._sites.values())
        if self.waiting or pending:
            raise RuntimeError(
                "evaluation_draw() between a training forward and optimizer.step(); call it after step()."
            )
        self.clear()  # without gradients, products belong to a step that was abandoned (see `goes_on`)
        try:
            self._sample(Draw(self.source, self.step, index, rank=0), kind="evaluation/", sign=sign)
            self._evaluated = True
            yield
        finally:
            self._evaluated = False
            self.rest()
            self._forget_samples()

    @torch.no_grad()
    def evaluation_weights(self, index: int, *, sign: float = 1.0) -> dict[Tensor, Tensor]:
        """The weights of an `evaluation_draw`, by parameter; as what else may be in their place.

        Raises:
            RuntimeError: as `evaluation_draw`.
        """
        with self.evaluation_draw(index, sign=sign):
            return {
                site.parameter: site.sample.to(site.parameter.dtype)
                for site in self._sites.values()
                if site.sample is not None
            }

    @contextmanager
    def own_forwards(self) -> Iterator[None]:
        """Within it modules have their own forwards, at the mean: for what takes their places in turn."""
        taken_off = [wrapped for wrapped in self._wrapped if wrapped.scope.__dict__.get("forward") is wrapped]
        for wrapped in taken_off:
            wrapped.remove()
        try:
            yield
        finally:
            for wrapped in taken_off:
                wrapped.scope.forward = wrapped

    def observe_loss(self, loss: Tensor) -> None:
        """Shows the loss that is trained on, for a variance that follows it (`IVON(variance="fit")`).

        Call it before the backward pass. The share of the step that the loss has, as 1/k under accumulation over k
        micro-batches, is seen in the backward pass. Not needed where the model returns its loss (`output.loss`), or the
        answers' log-probabilities (`output.log_probs`, as in TRL's SFTTrainer); what is shown here goes before what the
        same backward pass goes through of these.

        Args:
            loss: a scalar, in nats, from which a backward pass will go.

        Raises:
            ValueError: it is no such tensor.

        Example:
            >>> import torch
            >>> from varlora import IVON, NoiseController
            >>> model = torch.nn.Linear(3, 1)
            >>> noise = NoiseController(model, IVON(model.parameters(), lr=0.1, ess=50.0, hess_init=1.0))
            >>> for _ in range(2):                       # two micro-batches
            ...     loss = model(torch.ones(1, 3)).sum() * 0 + 3
            ...     noise.observe_loss(loss)
            ...     (loss / 2).backward()
            >>> noise.mean_loss()
            3.0
        """
        if not _is_loss(loss):
            raise ValueError(
                f"observe_loss() got {loss!r}, which is no scalar that a backward pass can start from. Pass the loss "
                "itself, before loss.backward()."
            )
        self._losses.show(loss)

    # For the optimizer (`posterior.gaussian_optimizer.NoiseStatistics`) ------------------------------------------

    def collect(self) -> dict[Tensor, Tensor | None]:
        """The mean of noise · gradient over draws and ranks, per parameter that took part; None where it is not read.

        Raises:
            RuntimeError: no draw took part in a backward pass, or a gradient bypassed its noise.
        """
        collected = [
            (site, *of_ranks)
            for groups, sites in self._ranks.items()
            for site, of_ranks in zip(
                sites,
                averaged(sites, self.optimizer, groups, self.device, products=self._products_are_read),
                strict=True,
            )
        ]
        if not any(took_part for _, took_part, _, _ in collected):
            raise RuntimeError(
                "IVON.step() found no draw to learn from: no backward pass has gone through the sampled weights "
                "since the last step. Call model.train(), run the forward pass through the very model given to "
                "NoiseController (not through a submodule), then loss.backward(), then step()."
            )
        scale = self._scale
        result: dict[Tensor, Tensor | None] = {}
        bypassed = []
        for site, took_part, product, without_noise in collected:
            p = site.parameter
            if without_noise or (not took_part and p.grad is not None and bool((p.grad != 0).any())):
                bypassed.append(site.name)
            elif took_part and p.grad is not None:
                if product is not None and scale != 1:
                    product = product * scale
                result[p] = sharded_like(p, product) if product is not None else None
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
                f"{', '.join(bypassed[:3])}{', ...' if len(bypassed) > 3 else ''}. They are read outside the forward "
                "of the module that owns them (by torch's RNN layers, by a penalty on weights in the loss, by another "
                "layer), where the mean is seen and the curvature missed. Read them in their module's forward only (a "
                "penalty on weights is a prior: IVON's weight_decay), freeze them, or train them by another optimizer."
            )
        return result

    def all_agree(self, flag: Tensor) -> bool:
        """Whether `flag` is true on every rank."""
        number = flag.to(self.device, torch.int32)
        for groups in self._ranks:
            reduce_(number, groups, dist.ReduceOp.MIN)
        return bool(number)

    def mean_loss(self) -> float | None:
        """The training loss of this step, by the shares that its parts had, the mean over ranks; None: none was seen.

        Of each backward pass it is what `observe_loss` was shown, else what the model returned as `output.loss` or
        `output.log_probs`.
        """
        numbers = torch.tensor([self._losses.total() * self._scale, float(bool(self._losses))], dtype=torch.float64)
        for groups in sorted(self._ranks, key=size_of):
            if groups:
                numbers = reduce_(numbers.to(self.device), groups).cpu() / size_of(groups)
        loss, share = numbers.tolist()
        return loss / share if share else None

    def clear(self) -> None:
        """Forgets the products and losses collected since the last step."""
        for site in self._sites.values():
            site.clear()
        self._losses.clear()

    def after_step(self) -> None:
        """Ends the step; the next training forward is in another, and starts its first draw.

        Raises:
            RuntimeError: the optimizer has not counted the step, by which the next noise would be the same again.
        """
        self.clear()
        self._forget_samples()
        if self.draw is not None and self.draw.step == self.step:
            raise RuntimeError(
                f"{type(self.optimizer).__name__}.step() ended without counting: its step_index, which keys the noise, "
                "must grow by one before it calls after_step()."
            )

    # Forward and backward -----------------------------------------------------------------------------------

    @property
    def sampling(self) -> bool:
        """Whether a module reads sampled weights: in training mode, recomputed in a backward pass, or as asked."""
        return not self.model.training if self._evaluated else super().sampling

    @uncompiled
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if module is self.model and self._evaluated and (self.model.training or torch.is_grad_enabled()):
            raise RuntimeError(
                "a forward within evaluation_draw() in training mode, or with gradients; call model.eval() and use "
                "torch.no_grad() around it."
            )
        super()._before_forward(module, args)
        if module is self.model and self.sampling and not self._evaluated:
            assert self.draw is not None
            self._sample(self.draw)  # again where the draw goes on: the weights may have been loaded anew

    @uncompiled
    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self.model and self.sampling:
            self._losses.look_at(output)
        super()._after_forward(module, args, output)

    def goes_on(self) -> bool:
        """Whether there are gradients of this step.

        Without any, products that are left belong to a step that was abandoned (a GradScaler that found an overflow, an
        exception in a loop that went on).
        """
        return any(site.parameter.grad is not None for site in self._sites.values())

    def begin(self, draw: Draw) -> None:
        """The first draw of a step finds nothing of the step before it."""
        if draw.index == 0:
            self.clear()

    @torch.no_grad()
    def _sample(self, draw: Draw, kind: str = "", sign: float = 1.0) -> None:
        self._forget_samples()
        for sites in self._blocks:
            means = [whole(self.optimizer.mean(site.parameter)) for site in sites]
            names = [f"{kind}{site.name}" for site in sites]
            by_name = draw.normals(dict(zip(names, means, strict=True)))
            noise = [by_name[name] for name in names]
            scale = self.optimizer.noise_scale(sites[0].parameter)
            if isinstance(scale, Tensor):
                scales: list[Any] = [scale, *(self.optimizer.noise_scale(site.parameter) for site in sites[1:])]
                torch._foreach_mul_(noise, [whole(one) for one in scales])
                scale = 1.0
            elif self._products_are_read:
                torch._foreach_mul_(noise, scale)
                scale = 1.0
            for site, sample in zip(sites, torch._foreach_add(means, noise, alpha=sign * scale), strict=True):
                site.sample = sample
            if self._products_are_read:
                for site, one in zip(sites, noise, strict=True):
                    site.noise = one

    def _forget_samples(self) -> None:
        for site in self._sites.values():
            site.sample = site.noise = None

    @uncompiled
    def shadow(self, places: Sequence[Place]) -> None:
        """Shadows each parameter by its sample: an instance attribute wins over a registered parameter."""
        for place in places:
            site, parameter = place.site, place.holder._parameters[place.attribute]
            sample, noise = site.sample, site.noise
            assert parameter is not None
            assert sample is not None
            if sample.dtype != parameter.dtype:
                rounded = sample.to(parameter.dtype)
                if noise is not None:
                    noise = noise + (rounded.to(sample.dtype) - sample)  # what the forward pass really sees
                sample = rounded
            record = functools.partial(self._record, site, site.arrivals_at(parameter), noise)
            place.holder.__dict__[place.attribute] = Sample.apply(parameter, sample, record)  # type: ignore[no-untyped-call]

    @property
    def _products_are_read(self) -> bool:
        return getattr(self.optimizer, "reads_products", True)

    @property
    def _scale(self) -> float:
        """What undoes the scaling of the loss."""
        return 1.0 / self.scaler.get_scale() if self.scaler is not None else 1.0

    def _record(self, site: Site, arrivals: Arrivals, noise: Tensor | None, gradient: Tensor) -> None:
        arrivals.hand_on(gradient)
        site.took_part = True
        if noise is not None:
            product = gradient.to(noise.dtype) * noise
            site.product = product if site.product is None else site.product.add_(product)
        self.mark_used()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoiseController:
        """A copy of the model is not under control; see `SampledForward`."""
        return self

    # Finding the parameters ---------------------------------------------------------------------------------

    def _find_sites(self) -> dict[str, Site]:
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
        return {name: Site(name, p) for p, name in sorted(names.items(), key=lambda item: item[1]) if p in held}

    def _find_blocks(self) -> list[list[Site]]:
        """The sites that are sampled together: of one group, device and precision, and on a CPU within its cache."""
        alike: dict[tuple[int, torch.device, bool], list[Site]] = {}
        group_of = {p: i for i, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        for site in self._sites.values():
            p = site.parameter
            alike.setdefault((group_of[p], p.device, p.dtype == torch.float64), []).append(site)
        return [
            block
            for (_, device, _), sites in alike.items()
            for block in blocks(sites, [site.parameter.numel() for site in sites], device, NOISE_BLOCK)
        ]

    @property
    def device(self) -> torch.device:
        """Where the trained parameters are (the first of them)."""
        return next(iter(self._sites.values())).parameter.device


def _is_loss(loss: object) -> TypeGuard[Tensor]:
    return isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad
