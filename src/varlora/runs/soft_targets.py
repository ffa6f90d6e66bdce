"""One set of weights whose answers match given probabilities: cross-entropy on soft targets, by AdamW.

Every rate starts at the same weights and runs a linear schedule. A part of the rows is kept out of training, and after
each epoch the divergence from their targets is measured: the weights of the lowest are taken, those of the start among
them. No label is read.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as progress_bars

from varlora.adapters import load_into, trained_tensors
from varlora.adapters.modes import evaluation_mode
from varlora.posterior.draws import on_device_of
from varlora.readout.readout import Readout
from varlora.tasks import Collator

logger = logging.getLogger(__name__)

WARMUP = 0.1
"""Share of the steps in which the rate rises."""
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class SoftTargetOptions:
    """How the weights are fitted.

    Attributes:
        learning_rates: of AdamW, each tried.
        num_train_epochs: passes over the rows, of each.
        batch_size: rows of a step.
        kept: share of the rows on which rate and epoch are chosen.
        seed: of which rows are kept, and of their order.

    Raises:
        ValueError: a value is out of its range.
    """

    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    num_train_epochs: int = 10
    batch_size: int = 8
    kept: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rates", tuple(self.learning_rates))
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"learning_rates is {self.learning_rates}; give one or more positive numbers.")
        for name in ("num_train_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.kept < 1:
            raise ValueError(f"kept is {self.kept}; it must be a fraction between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class SoftTargetFit:
    """What was fitted.

    Attributes:
        weights: by checkpoint key.
        learning_rate: the chosen rate; None where nothing is closer to the targets than the start.
        epoch: after which epoch; 0 is the start.
        divergence: mean KL(target ‖ answer) of the kept rows, nats.
        start: the same of the start.
        rows: how many rows it was fitted to.
        kept: how many were kept out.
    """

    weights: Mapping[str, Tensor]
    learning_rate: float | None
    epoch: int
    divergence: float
    start: float
    rows: int
    kept: int


def fit_soft_targets(
    model: nn.Module,
    start: Mapping[str, Tensor],
    examples: Sequence[Mapping[str, Any]],
    targets: Tensor,
    *,
    readout: Readout,
    collate: Collator,
    options: SoftTargetOptions,
    progress: bool = False,
) -> SoftTargetFit:
    """Fits weights to given probabilities. Dropout is off: a function is matched, and no label is fitted.

    Args:
        model: With the adapter, whose tensors train; they are left at the chosen weights.
        start: Where to start, by checkpoint key.
        examples: N encoded rows, as `collate` takes them.
        targets: Probabilities (N, C), 0 for a choice that a row lacks.
        readout: How the answer is read.
        collate: Makes the batches.
        options: How to fit.
        progress: Show a progress bar.

    Raises:
        ValueError: There are too few rows to keep some of them out, or the loss is not finite.
    """
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(examples), generator=generator)
    num_kept = round(options.kept * len(examples))
    if num_kept < 1 or num_kept == len(examples):
        raise ValueError(f"{len(examples)} rows are too few to keep {options.kept:g} of them out; give more rows.")
    kept, rows = order[:num_kept], order[num_kept:]
    steps = -(-len(rows) // options.batch_size)

    def loss_of(indices: Tensor) -> Tensor:
        batch = on_device_of(model, collate([examples[i] for i in indices.tolist()]))
        return cross_entropy(readout.logits(model, batch), targets[indices])

    def divergence() -> float:
        with torch.no_grad():
            losses = torch.cat([loss_of(part) for part in torch.split(kept, options.batch_size)])
        return float((losses - entropy_of(targets[kept])).mean())

    def epochs(rate: float) -> Iterator[float]:
        """Trains, and gives the divergence of the kept rows after each epoch."""
        load_into(model, start)
        trained = list(trained_tensors(model).values())
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _triangle(steps * options.num_train_epochs))
        shuffle = torch.Generator().manual_seed(options.seed)
        for _ in range(options.num_train_epochs):
            for part in torch.split(rows[torch.randperm(len(rows), generator=shuffle)], options.batch_size):
                loss = loss_of(part).mean()
                if not bool(loss.isfinite()):
                    raise ValueError(f"the loss is {float(loss)} at the rate {rate:g}; choose smaller ones.")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
                optimizer.step()
                schedule.step()
                bar.update()
            yield divergence()

    total = len(options.learning_rates) * options.num_train_epochs * steps
    with (
        torch.random.fork_rng(devices=[]),
        evaluation_mode(model),
        progress_bars.tqdm(total=total, desc="distill", unit="step", disable=not progress) as bar,
    ):
        load_into(model, start)
        weights, lowest, chosen = _copy(model), (first := divergence()), 0
        rate_chosen: float | None = None
        for rate in options.learning_rates:
            for epoch, kl in enumerate(epochs(rate), start=1):
                logger.debug("rate %g, epoch %d: KL %.4g on the kept rows", rate, epoch, kl)
                if kl < lowest:
                    weights, lowest, chosen, rate_chosen = _copy(model), kl, epoch, rate
        load_into(model, weights)
    return SoftTargetFit(
        weights=weights,
        learning_rate=rate_chosen,
        epoch=chosen,
        divergence=lowest,
        start=first,
        rows=len(rows),
        kept=len(kept),
    )


def _triangle(steps: int) -> Callable[[int], float]:
    """The rate's factor by step: up in the first `WARMUP` of the steps, then down to 0."""
    warm = max(1, round(WARMUP * steps))
    return lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu", copy=True) for key, value in trained_tensors(model).items()}


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−Σ_c p_c log softmax(logits)_c of each row, (N,); choices that a row lacks (logit −inf) do not count.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -torch.inf]])
        >>> cross_entropy(logits, torch.tensor([[0.5, 0.5, 0.0]]))
        tensor([0.6931])
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    targets = targets.to(log_probs.device, log_probs.dtype)
    return -(targets * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(dim=-1)


def entropy_of(targets: Tensor) -> Tensor:
    """−Σ_c p_c log p_c of each row, (N,).

    Example:
        >>> entropy_of(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([0.0000, 0.6931])
    """
    entropies: Tensor = torch.special.entr(targets)
    return entropies.sum(dim=-1)
