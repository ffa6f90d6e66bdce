"""Passes of a model over the same batches, one for each coherent draw of its weights, or for each dropout mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from varlora.adapters import applied, applying, check_base, dropout_on
from varlora.adapters.modes import evaluation_mode
from varlora.posterior import DropoutMasks, Mixture, PointMass, Posterior
from varlora.readout.batch_rows import num_rows

Result = TypeVar("Result")


def number_of_draws(q: Posterior | None, samples: int) -> int:
    """How many passes `samples` stands for.

    Args:
        q: The posterior; None is the model as it stands.
        samples: S.

    Returns:
        One where there is nothing to draw: S = 0, a `PointMass`, no posterior. M for a `Mixture` of M point masses,
        which has no other draws; S rounded up to a multiple of M for another mixture, so that its components weigh
        the same. Else S.

    Raises:
        ValueError: S is negative or no whole number.

    Example:
        >>> q = Mixture(components=[PointMass(mean={"w": torch.zeros(1)})] * 3)
        >>> [number_of_draws(q, samples) for samples in (0, 1, 10)]
        [1, 3, 3]
    """
    if q is None:
        return 1
    if samples < 0 or samples != int(samples):
        raise ValueError(f"samples is {samples}; allowed: 0 (the mean), 1, 2, ...")
    if samples == 0 or isinstance(q, PointMass):
        return 1
    return len(q.components) * _draws_per_component(q, samples) if isinstance(q, Mixture) else samples


def weight_draws(
    q: Posterior, samples: int, *, antithetic: bool = True, seed: int = 0
) -> Iterator[Mapping[str, Tensor]]:
    """The `number_of_draws` sets of weights to predict with: its point for S = 0 or a `PointMass`, else draws.

    A `Mixture` is stratified: every component in turn gives the same number of draws.

    Args:
        q: The posterior.
        samples: S.
        antithetic: Draws 2k and 2k + 1 are mean + e and mean - e, where q is symmetric about its mean.
        seed: Seeds a CPU generator, so that the draws do not depend on the device.

    Raises:
        ValueError: S is negative or no whole number.
        NotAWeightSampleError: q draws something else than weights.

    Example:
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.ones(1)}, precision={"w": torch.ones(1)})
        >>> [len(list(weight_draws(q, samples))) for samples in (0, 1, 3)]
        [1, 1, 3]
        >>> a, b = weight_draws(q, 2)
        >>> (a["w"] + b["w"]).item()
        2.0
    """
    number_of_draws(q, samples)  # refuses what is no number of draws
    if samples == 0 or isinstance(q, PointMass):
        yield q.point
        return
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(q, Mixture):
        yield from _draws(q, samples, antithetic, generator)
        return
    for component in q.components:
        yield from _draws(component, _draws_per_component(q, samples), antithetic, generator)


def over_draws(
    model: nn.Module, q: Posterior | None, samples: int, one_pass: Callable[[], Tensor], *, antithetic: bool, seed: int
) -> Tensor:
    """One pass for each set of weights, or for each dropout mask, stacked along dimension 1.

    Raises:
        ValueError: the model's base is not the one that the posterior was trained on.
    """
    with ready_to_predict(model, q):
        return torch.stack(list(passes_in_turn(model, q, samples, one_pass, antithetic=antithetic, seed=seed)), dim=1)


@contextmanager
def ready_to_predict(model: nn.Module, q: Posterior | None) -> Iterator[None]:
    """Within the block the model is in eval mode and without gradients; then modes and random state are as before.

    Raises:
        ValueError: the model's base is not the one that the posterior was trained on.
    """
    if q is not None:
        check_base(model, q.point.keys(), q.meta.base_fingerprint, q.meta.base_model)
    with torch.random.fork_rng(devices=[]), evaluation_mode(model), torch.no_grad():
        yield


def passes_in_turn(
    model: nn.Module, q: Posterior | None, samples: int, one_pass: Callable[[], Result], *, antithetic: bool, seed: int
) -> Iterator[Result]:
    """What one pass gives for each set of weights, or for each dropout mask, one after another."""
    if q is None:
        yield one_pass()
    elif isinstance(q, DropoutMasks) and samples != 0:
        yield from _masked_passes(model, q, number_of_draws(q, samples), one_pass, seed)
    else:
        with applying(model, q.point) as apply:
            for weights in weight_draws(q, samples, antithetic=antithetic, seed=seed):
                apply(weights)
                yield one_pass()


def held_batches(batches: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The batches as a list, without those of no row.

    A DataLoader seeds its workers from the global generator, which is put back.

    Raises:
        ValueError: there is no row.
    """
    with torch.random.fork_rng(devices=[]):
        held = [batch for batch in batches if num_rows(batch)]
    if not held:
        raise ValueError("there is no batch to predict")
    return held


def on_device_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its tensors where the model's first parameter is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def progress_bar(batches: int, q: Posterior | None, samples: int, *, shown: bool) -> Any:
    """A progress bar over all passes, as transformers shows them."""
    from transformers.utils import logging as progress_bars

    total = batches * number_of_draws(q, samples)
    return progress_bars.tqdm(total=total, desc="predict", unit="batch", disable=not shown)


def _draws_per_component(q: Mixture, samples: int) -> int:
    if all(isinstance(component, PointMass) for component in q.components):
        return 1
    return -(-samples // len(q.components))


def _draws(q: Posterior, samples: int, antithetic: bool, generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
    mirrored = antithetic and q.symmetric
    for first in range(0, samples, 2 if mirrored else 1):
        draw = q.sample(generator)
        yield draw
        if mirrored and first + 1 < samples:
            yield {key: 2 * q.mean[key].to(value.dtype) - value for key, value in draw.items()}


def _masked_passes(
    model: nn.Module, q: DropoutMasks, samples: int, one_pass: Callable[[], Result], seed: int
) -> Iterator[Result]:
    """Passes at the point, each with masks from a seed of its own; the first of more passes are those of fewer."""
    generator = torch.Generator().manual_seed(seed)
    with applied(model, q.point), dropout_on(model, q.rate):
        for _ in range(samples):
            with _seeded(model, int(torch.randint(2**63 - 1, (), generator=generator))):
                result = one_pass()
            yield result


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Within the block the global generators of the model's devices start from a seed; then they are as before.

    Dropout takes no generator of its own.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
