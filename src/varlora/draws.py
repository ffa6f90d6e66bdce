"""Passes of a model over the same batches, one for each coherent draw of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as progress_bars

from varlora.adapters import applied
from varlora.modes import evaluation_mode
from varlora.posterior import PointMass, Posterior


def weight_draws(
    q: Posterior, samples: int, *, antithetic: bool = True, seed: int = 0
) -> Iterator[Mapping[str, Tensor]]:
    """S sets of weights to predict with: the mean for S = 0 or a `PointMass`, else draws.

    Args:
        q: The posterior; mirroring needs one that is symmetric about its mean, as Gaussians are.
        samples: S.
        antithetic: Draws 2k and 2k + 1 are mean + e and mean - e.
        seed: Seeds a CPU generator, so that the draws do not depend on the device.

    Example:
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.ones(1)}, precision={"w": torch.ones(1)})
        >>> [len(list(weight_draws(q, samples))) for samples in (0, 1, 3)]
        [1, 1, 3]
        >>> a, b = weight_draws(q, 2)
        >>> (a["w"] + b["w"]).item()
        2.0
    """
    if samples < 0 or samples != int(samples):
        raise ValueError(f"samples is {samples}; allowed: 0 (the mean), 1, 2, ...")
    if samples == 0 or isinstance(q, PointMass):
        yield q.mean
        return
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, samples, 2 if antithetic else 1):
        draw = q.sample(generator)
        yield draw
        if antithetic and first + 1 < samples:
            yield {key: 2 * q.mean[key].to(value.dtype) - value for key, value in draw.items()}


def over_draws(
    model: nn.Module,
    q: Posterior | None,
    samples: int,
    one_pass: Callable[[], Tensor],
    *,
    antithetic: bool,
    seed: int,
) -> Tensor:
    """One pass for each set of weights, stacked along dimension 1."""
    with torch.random.fork_rng(devices=[]), evaluation_mode(model), torch.no_grad():
        if q is None:
            return one_pass()[:, None]
        passes = []
        for weights in weight_draws(q, samples, antithetic=antithetic, seed=seed):
            with applied(model, weights):
                passes.append(one_pass())
        return torch.stack(passes, dim=1)


def held_batches(batches: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The batches as a list. A DataLoader seeds its workers from the global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        held = list(batches)
    if not held:
        raise ValueError("there is no batch to predict")
    return held


def on_device_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its tensors where the model's first parameter is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def progress_bar(batches: int, q: Posterior | None, samples: int, *, shown: bool) -> Any:
    """A progress bar over all passes, as transformers shows them."""
    passes = 1 if q is None or isinstance(q, PointMass) else max(1, samples)
    return progress_bars.tqdm(total=batches * passes, desc="predict", unit="batch", disable=not shown)
