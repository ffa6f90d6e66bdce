"""A random `lora_A`: what BLoB and ScalaBL share.

The adapter holds the mean of A at all times; each random `lora_A` also gets a parameter `sqrt_std`, ρ, whose square
is a standard deviation. In a training forward a hook on `lora_A` adds to its output what the random part of A adds:

    h = A x            at evaluation, without gradients, outside the model's own forward
    h = A x + δ(x)     in training, and when a backward pass recomputes it (gradient checkpointing)

Evaluating, saving, an exception or an interrupt thus see the mean, and A's checkpoint is an ordinary adapter's. ρ is
named and registered like any LoRA weight, so data parallelism, clipping, accumulation, mixed precision and the
trainer's checkpoints need no special cases.

One draw belongs to one forward-and-backward pass: a training forward draws anew once a backward pass has used the last
draw. Noise is a function of (seed, step, draw, rank, name) and of no generator's state, so a resumed run draws what
the uninterrupted one would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from varlora.adapters import linear_factors
from varlora.noise import CounterNoise, NoiseSource
from varlora.optim.mean_field import MeanFieldAdamW


@dataclass(frozen=True)
class Factor:
    """One random `lora_A`, of shape (r, in).

    Attributes:
        key: A's checkpoint key; names its noise.
        lora_a: the linear map x ↦ A x.
        lora_b: the linear map that follows.
    """

    key: str
    lora_a: nn.Linear
    lora_b: nn.Linear

    @property
    def mean(self) -> nn.Parameter:
        """The mean of A, (r, in)."""
        return self.lora_a.get_parameter("weight")

    @property
    def sqrt_std(self) -> nn.Parameter:
        """ρ, the root of the standard deviations."""
        return self.lora_a.get_parameter("sqrt_std")


@dataclass(frozen=True)
class Draw:
    """The noise of one forward-and-backward pass.

    Attributes:
        source: standard-normal noise.
        step: the optimizer step, from 0.
        index: the draw within the step, from 0.
        rank: the data-parallel rank.
    """

    source: NoiseSource
    step: int
    index: int
    rank: int

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard-normal noise in the shape, dtype and device of `like`."""
        return self.source.draw(name, like, step=self.step, draw=self.index, rank=self.rank)

    def signs(self, name: str, like: Tensor) -> Tensor:
        """Fair signs ±1 in the shape, dtype and device of `like`."""
        return 1 - 2 * (self.normal(name, like) < 0).to(like.dtype)


Perturbation = Callable[[Factor, Tensor, Tensor, Draw], Tensor]
"""(factor, x, A x, draw) ↦ what the random part of A adds to A x."""


class RandomFactors:
    """Makes every trained `lora_A` of a model random until `detach`.

    Factors that are left on the model by a training that broke off are detached first.

    Args:
        model: a PEFT model with LoRA on linear layers.
        perturbation: what the random part adds to the output of `lora_A`.
        std_shape: from A's shape (r, in) to that of its standard deviations.
        initial_std_bound: ε; ρ starts uniform in (ε/√2, ε).
        seed: of the noise and of ρ's start.
        source: the noise; None: `CounterNoise(seed)`.
        rank: the data-parallel rank; None asks torch.distributed.

    Raises:
        ValueError: there is no LoRA adapter whose A trains, or the adapter of some layer is not plain LoRA on a linear
            layer, or not in float32.

    Example:
        >>> import torch
        >>> from peft import LoraConfig, get_peft_model
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 2)), LoraConfig(r=1, target_modules=["0"]))
        >>> def add_one(factor, x, output, draw):
        ...     return torch.ones_like(output)
        >>> with_noise = RandomFactors(model, add_one, std_shape=lambda shape: shape, initial_std_bound=0.05, seed=0)
        >>> with_noise.factors[0].sqrt_std.shape
        torch.Size([1, 3])
        >>> with_noise.detach()
        >>> [name for name, _ in model.named_parameters() if "sqrt_std" in name]
        []
    """

    def __init__(
        self,
        model: nn.Module,
        perturbation: Perturbation,
        *,
        std_shape: Callable[[torch.Size], torch.Size],
        initial_std_bound: float,
        seed: int,
        source: NoiseSource | None = None,
        rank: int | None = None,
    ) -> None:
        release(model)
        self.model: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
        self.perturbation = perturbation
        self.source = source if source is not None else CounterNoise(seed)
        self.rank = rank if rank is not None else (dist.get_rank() if dist.is_initialized() else 0)
        self.optimizer: MeanFieldAdamW | None = None

        self._draw: Draw | None = None
        self._used = True  # whether a backward pass has used the present draw
        self._in_forward = False  # whether the model's own training forward is under way
        self.factors = [Factor(*found) for found in linear_factors(self.model)]
        for factor in self.factors:
            like = factor.mean.new_empty(std_shape(factor.mean.shape))
            normal = CounterNoise(seed).draw(f"{factor.key} start", like, step=0, draw=0, rank=0)
            low, high = initial_std_bound / math.sqrt(2), initial_std_bound
            start = low + (high - low) * torch.special.ndtr(normal)  # Φ(ε) is uniform in (0, 1)
            factor.lora_a.register_parameter("sqrt_std", nn.Parameter(start))
        self._hooks = [factor.lora_a.register_forward_hook(_Perturb(self, factor)) for factor in self.factors]
        self._hooks.append(self.model.register_forward_pre_hook(self._before_forward))
        self._hooks.append(self.model.register_forward_hook(self._after_forward, always_call=True))

    def follow(self, optimizer: MeanFieldAdamW) -> None:
        """Takes the index of the step from this optimizer."""
        self.optimizer = optimizer

    def std(self) -> dict[str, Tensor]:
        """σ = ρ² by A's checkpoint key: a copy, in float64."""
        return {factor.key: factor.sqrt_std.detach().double().square() for factor in self.factors}

    def detach(self) -> None:
        """Removes hooks and ρ from the model, which is then as any LoRA model, at the mean."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for factor in self.factors:
            factor.lora_a._parameters.pop("sqrt_std", None)

    @property
    def sampling(self) -> bool:
        """Whether `lora_A` is random now."""
        recomputing = torch._C._current_graph_task_id() != -1
        return self._draw is not None and (self._in_forward or recomputing)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def perturb(self, factor: Factor, x: Tensor, output: Tensor) -> Tensor:
        """The output of `lora_A` with what its random part adds, if it is random now."""
        if not self.sampling:
            return output
        assert self._draw is not None
        perturbed = output + self.perturbation(factor, x, output, self._draw).to(output.dtype)
        if perturbed.requires_grad:
            perturbed.register_hook(self._mark_used)  # type: ignore[no-untyped-call]
        return perturbed

    def _mark_used(self, gradient: Tensor) -> None:
        self._used = True

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        self._in_forward = module is self.model and module.training and torch.is_grad_enabled()
        if not self._in_forward or not self._used:
            return
        step = self.optimizer.step_index if self.optimizer is not None else 0
        index = self._draw.index + 1 if self._draw is not None and self._draw.step == step else 0
        self._draw = Draw(self.source, step, index, self.rank)
        self._used = False

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._in_forward = False


class _Perturb:
    """The hook on one `lora_A`."""

    def __init__(self, factors: RandomFactors, factor: Factor) -> None:
        self.factors, self.factor = factors, factor

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self.factors.perturb(self.factor, args[0], output)  # type: ignore[no-any-return]


def release(model: nn.Module) -> None:
    """Detaches every `RandomFactors` from the model; without any, nothing happens."""
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    for hook in hooks:
        if isinstance(hook, _Perturb):
            hook.factors.detach()
