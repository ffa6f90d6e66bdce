"""A random `lora_A`: what BLoB and ScalaBL share.

The adapter holds the mean of A at all times; each random `lora_A` also gets a parameter `sqrt_std`, ρ, whose square
is a standard deviation. In a training forward a hook on `lora_A` adds to its output what the random part of A adds:

    h = A x            at evaluation, and where the model is called without gradients
    h = A x + δ(x)     in training, and when a backward pass recomputes it (`noise.draw_cycle`)

Evaluating, saving, an exception or an interrupt thus see the mean, and A's checkpoint is an ordinary adapter's. ρ is
named and registered like any LoRA weight, so data parallelism, clipping, accumulation, mixed precision and the
trainer's checkpoints need no special cases. Since δ may have noise of each example's own, choices that are scored as
texts are rows of their own in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varlora.adapters import linear_factors
from varlora.ivon.noise import CounterNoise, Draw, DrawCycle, NoiseSource
from varlora.ivon.noise.draw_cycle import CountsSteps
from varlora.readout.packed_choices import choices_as_rows


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


Perturbation = Callable[[Factor, Tensor, Tensor, Draw], Tensor]
"""(factor, x, A x, draw) ↦ what the random part of A adds to A x."""


class RandomFactors(DrawCycle):
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
        super().__init__(model, source=source, seed=seed, rank=rank)
        self.perturbation = perturbation
        self.factors = [Factor(*parts) for parts in linear_factors(self.model)]
        for factor in self.factors:
            like = factor.mean.new_empty(std_shape(factor.mean.shape))
            normal = Draw(CounterNoise(seed), step=0, index=0, rank=0).normal(f"{factor.key} start", like)
            low, high = initial_std_bound / math.sqrt(2), initial_std_bound
            start = low + (high - low) * torch.special.ndtr(normal)  # Φ(ε) is uniform in (0, 1)
            factor.lora_a.register_parameter("sqrt_std", nn.Parameter(start))
        self.attach()
        self._hooks += [factor.lora_a.register_forward_hook(_Perturb(self, factor)) for factor in self.factors]
        self._hooks.append(choices_as_rows(self.model))

    def follow(self, optimizer: CountsSteps) -> None:
        """Takes the index of the step from this optimizer."""
        self.counter = optimizer

    def std(self) -> dict[str, Tensor]:
        """σ = ρ² by A's checkpoint key: a copy, in float64."""
        return {factor.key: factor.sqrt_std.detach().double().square() for factor in self.factors}

    def detach(self) -> None:
        """Removes hooks and ρ from the model, which is then as any LoRA model, at the mean."""
        super().detach()
        for factor in self.factors:
            factor.lora_a._parameters.pop("sqrt_std", None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def perturb(self, factor: Factor, x: Tensor, output: Tensor) -> Tensor:
        """The output of `lora_A` with what its random part adds, if it is random now."""
        if not self.sampling:
            return output
        assert self.draw is not None
        perturbed = output + self.perturbation(factor, x, output, self.draw).to(output.dtype)
        if perturbed.requires_grad:
            perturbed.register_hook(lambda _: self.mark_used())  # type: ignore[no-untyped-call]
        return perturbed


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
