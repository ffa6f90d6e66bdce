"""What noise, posteriors and trainers ask of an optimizer that holds a Gaussian posterior.

    NoiseController    param_groups, noise, step_index, mean, noise_scale        draws from it, and collects for it
    posterior_of       param_groups, mean, precision, prior_*, ess_of, diagnostics
    trainers           all of them; and of an `AutoOptimizer` what it leaves to the training

`varlora.IVON` is one. One of your own need be no subclass of it: it has these attributes (docs/trainers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class NoiseStatistics(Protocol):
    """What an optimizer needs from whoever draws its noise (`varlora.ivon.noise.NoiseController`)."""

    def collect(self) -> Mapping[Tensor, Tensor | None]:
        """Returns mean(noise · gradient) of every parameter whose noise took part in a backward pass.

        None in their place, where the optimizer says that it reads none (`reads_products`).
        """

    def all_agree(self, flag: Tensor) -> bool:
        """Whether `flag` is true on every rank."""

    def mean_loss(self) -> float | None:
        """The training loss of the step, the mean over ranks; None where none was seen."""

    def clear(self) -> None:
        """Forgets the products, and the losses, collected so far."""

    def after_step(self) -> None:
        """Called once at the end of every step, taken or skipped."""


class GaussianOptimizer(Protocol):
    """A `torch.optim.Optimizer` that holds a Gaussian posterior over what it trains.

    It may have an attribute more: `reads_products`, whether a step reads noise · gradient. Where it is false, none is
    computed; without it, they are.

    Attributes:
        param_groups: PyTorch's.
        defaults: PyTorch's: the options as they were given.
        noise: whoever draws its noise; None before that. `step` collects from it, and tells it when it is over.
        step_index: how many times `step` was called; part of the state, for the noise of a step is keyed by it.
        skipped_steps: how many of them changed nothing, because a number was not finite.
    """

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    noise: NoiseStatistics | None

    @property
    def step_index(self) -> int:
        """See the class."""

    @property
    def skipped_steps(self) -> int:
        """See the class."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """PyTorch's: a checkpoint's state."""

    def mean(self, p: Tensor) -> Tensor:
        """Posterior mean of `p`, in float32 or float64."""

    def precision(self, p: Tensor) -> Tensor:
        """Posterior precision of `p`, elementwise."""

    def noise_scale(self, p: Tensor) -> Tensor | float:
        """Posterior standard deviation of `p`, elementwise; a number: that of every entry of its parameter group."""

    def prior_precision(self, p: Tensor) -> float | None:
        """Precision of the prior of `p`; None: it has none of one number."""

    def prior_mean(self, p: Tensor) -> Tensor | None:
        """Mean of the prior of `p`; None: 0."""

    def ess_of(self, p: Tensor) -> float | None:
        """Effective sample size λ of `p`; None: it has none."""

    def diagnostics(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What it says of its training, for `PosteriorMeta.diagnostics`: plain JSON.

        Under FSDP2 every rank calls it.

        Args:
            tensors: the trained parameters by checkpoint key.
        """


@runtime_checkable
class AutoOptimizer(Protocol):
    """An optimizer that leaves options to the training ("auto"): the callback sets them."""

    def is_open(self) -> bool:
        """Whether there is no posterior before `settle`."""

    def settle(self, num_examples: int) -> None:
        """Told the number of training examples, when training begins."""

    def is_steered(self) -> bool:
        """Whether held-out rows may move λ."""

    def move_ess(self, law: Callable[[float, float], float]) -> None:
        """Moves λ.

        Args:
            law: from the present λ, and the one that training began with, to the next.
        """


_MEMBERS = (*GaussianOptimizer.__annotations__, *(name for name in vars(GaussianOptimizer) if not name.startswith("_")))


def missing_members(optimizer: Any) -> list[str]:
    """Which attributes of a `GaussianOptimizer` an optimizer lacks; none: it is one.

    Example:
        >>> import torch
        >>> missing_members(torch.optim.SGD([torch.zeros(1)]))[:3]
        ['noise', 'step_index', 'skipped_steps']
    """
    return [name for name in _MEMBERS if not hasattr(optimizer, name)]
