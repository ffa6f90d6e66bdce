"""SWAG-LoRA: a Gaussian through snapshots of AdamW's path at a constant learning rate.

    w_1, ..., w_K    the weights at K evenly spaced steps of the last part of training
    mean             w̄ = (1/K) Σ_k w_k
    diagonal         s² = max((1/K) Σ_k (w_k − w̄)², 1e-30)                       (= E w² − w̄²)
    deviations       D_k = w_k − w̄
    draw             w̄ + s ε / √2 + Dᵀ z / √(2 (K − 1)),   ε ~ N(0, I), z ~ N(0, I_K), one z for all tensors

The learning rate follows the run's schedule from `learning_rate` down to `swag_learning_rate` over the first part and
stays there. The K snapshots themselves are kept, as optimizer state: checkpoints hold them, and moments are exact
(a running E w² − w̄² in float32 loses a variance below 1e-7 w²). The paper's deviations are from the running mean at
the time of each snapshot; those from the final mean make DᵀD / (K − 1) the sample covariance, where the running mean
falls short of it by (K − H_K) / (K − 1), H_K = Σ 1/k: 0.79 for K = 10.

Source: Onal et al. 2024, arXiv 2405.03425; Maddox et al. 2019, arXiv 1902.02476, Algorithm 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from varlora.adapters import load_into, saved_tensors, trained_tensors
from varlora.methods.adamw import AdamW
from varlora.methods.method import Fit, Job, record
from varlora.methods.options import SwagOptions
from varlora.methods.snapshots import SnapshotAdamW, snapshot_adamw
from varlora.posterior import PosteriorMeta, model_meta
from varlora.posterior.low_rank import LowRankGaussian
from varlora.posterior.wrapped import restore_best
from varlora.training.adapter_trainer import AdapterTrainer

VARIANCE_MIN = 1e-30


@dataclass(frozen=True, kw_only=True)
class Swag(SwagOptions, AdamW):
    """AdamW, then a Gaussian with diagonal and low-rank covariance through its last snapshots.

    The schedule starts at `learning_rate`. As many copies of the adapter as there are snapshots are kept in memory, in
    checkpoints and in the posterior.

    Example:
        >>> Swag(learning_rate=1e-4).constant_learning_rate
        5e-05
    """

    @property
    def constant_learning_rate(self) -> float:
        """The learning rate while snapshots are taken."""
        return self.swag_learning_rate if self.swag_learning_rate is not None else self.learning_rate / 2

    def trainer(self, job: Job) -> Trainer:
        """A Trainer whose AdamW takes the snapshots.

        Raises:
            ValueError: the arguments ask for another optimizer, or for checkpoints without its state.
        """
        self.set_arguments(job)
        options = self.own_adamw_options(job, kept="snapshots are")
        parts = job.trainer_options()
        parts["optimizer_cls_and_kwargs"] = (SnapshotAdamW, options)
        parts["callbacks"] = [TakeSnapshots(self), *parts["callbacks"]]
        return SwagTrainer(
            **parts, swag=self, evaluate_at=lambda optimizer: mean_so_far(job.model, snapshot_adamw(optimizer))
        )

    def fit(self, job: Job) -> Fit:
        """The Gaussian through the snapshots; the model is left at their mean.

        With early stopping, evaluation begins at the second snapshot, at the mean of the snapshots so far, and the
        posterior is that of the best checkpoint.
        """
        trainer = self.trainer(job)
        log = job.run(trainer)
        optimizer = snapshot_adamw(trainer.optimizer)
        restore_best(optimizer, job.arguments, trainer.state)
        saved = saved_tensors(job.model)
        snapshots = {key: optimizer.state[p]["snapshots"] for key, p in saved.trained.items()}
        steps = snapshot_steps(trainer.state.max_steps, self.swag_start, self.snapshots)
        diagnostics = {
            "snapshot_steps": steps[: len(next(iter(snapshots.values())))],
            "swag_learning_rate": self.constant_learning_rate,
        }
        meta = model_meta(job.model, saved.tensors())
        meta = dataclasses.replace(meta, **record(job, self.name), diagnostics=diagnostics)
        q = swag_gaussian(snapshots, saved.fixed, meta=meta)
        load_into(job.model, q.mean)
        return Fit(posterior=q, log=log)


def swag_gaussian(
    snapshots: Mapping[str, Tensor], fixed: Mapping[str, Tensor] | None = None, *, meta: PosteriorMeta | None = None
) -> LowRankGaussian:
    """SWAG's Gaussian; its moments are taken in float64 and kept in float32.

    Args:
        snapshots: by key, the K >= 2 snapshots of a tensor, (K, *shape).
        fixed: by key, tensors that did not train; known exactly.
        meta: see `PosteriorMeta`.

    Raises:
        ValueError: a tensor has fewer than two snapshots, or another number than the rest.

    Example:
        >>> q = swag_gaussian({"w": torch.tensor([[1.0], [3.0]])})
        >>> q.mean["w"], q.diagonal["w"], q.deviations["w"]             # s²/2 and D/√2
        (tensor([2.]), tensor([0.5000]), tensor([[-0.7071],
                [ 0.7071]]))
    """
    counts = {key: len(taken) for key, taken in snapshots.items()}
    if len(set(counts.values())) != 1 or min(counts.values()) < 2:
        raise ValueError(f"SWAG needs two or more snapshots of every tensor, and as many of each, not {counts}.")
    count = next(iter(counts.values()))
    mean, diagonal, deviations = {}, {}, {}
    for key, taken in snapshots.items():
        average = taken.double().mean(0)
        moved = taken.double() - average
        mean[key] = average.float()
        diagonal[key] = (moved.square().mean(0).clamp(min=VARIANCE_MIN) / 2).float()
        deviations[key] = (moved / math.sqrt(2 * (count - 1))).float()
    for key, tensor in (fixed or {}).items():
        mean[key] = tensor.detach().float().clone()
        diagonal[key] = torch.zeros_like(mean[key])
        deviations[key] = torch.zeros(count, *tensor.shape, device=tensor.device)
    return LowRankGaussian(
        mean=mean, diagonal=diagonal, deviations=deviations, shared=True, meta=meta if meta else PosteriorMeta()
    )


def mean_so_far(model: nn.Module, optimizer: SnapshotAdamW) -> Mapping[str, Tensor] | None:
    """By checkpoint key, the mean of the snapshots that were taken; None before there are two."""
    taken = {key: optimizer.state.get(p, {}).get("snapshots", p[None]) for key, p in trained_tensors(model).items()}
    if any(len(snapshots) < 2 for snapshots in taken.values()):
        return None
    return swag_gaussian(taken).mean


def snapshot_steps(max_steps: int, start: float, snapshots: int) -> list[int]:
    """After which steps the snapshots are taken: evenly spaced, the last after the last step.

    Raises:
        ValueError: there are fewer steps than snapshots.

    Example:
        >>> snapshot_steps(max_steps=20, start=0.5, snapshots=4)
        [12, 15, 17, 20]
    """
    first = int(start * max_steps)
    steps = max_steps - first
    if steps < snapshots:
        raise ValueError(
            f"{snapshots} snapshots do not fit into the last {steps} of {max_steps} steps. Train longer, take fewer "
            "(snapshots), or begin earlier (swag_start)."
        )
    return [first + steps * k // snapshots for k in range(1, snapshots + 1)]


def annealed(factor: Callable[[int], float], *, steps: int, warmup: int, floor: float) -> Callable[[int], float]:
    """A schedule from 1 down to `floor` as another goes from 1 to 0, then constant.

    Args:
        factor: the other schedule, by step; its warm-up is kept as it is.
        steps: where the constant part begins.
        warmup: steps of warm-up.
        floor: the constant.

    Example:
        >>> rate = annealed(lambda step: 1 - step / 10, steps=10, warmup=0, floor=0.5)
        >>> [round(rate(step), 2) for step in (0, 4, 10, 99)]
        [1.0, 0.8, 0.5, 0.5]
    """

    def rate(step: int) -> float:
        if step >= steps:
            return floor
        return factor(step) if step < warmup else floor + (1 - floor) * factor(step)

    return rate


class TakeSnapshots(TrainerCallback):
    """Takes the snapshots as training goes by; a checkpoint of the same step holds them."""

    def __init__(self, swag: Swag) -> None:
        self.swag = swag
        self.steps: list[int] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plans the snapshots."""
        self.steps = snapshot_steps(state.max_steps, self.swag.swag_start, self.swag.snapshots)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Takes a snapshot if it is time."""
        if state.global_step in self.steps:
            snapshot_adamw(kwargs["optimizer"]).take_snapshot()
        return self._hold_back(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """See `_hold_back`."""
        return self._hold_back(args, state, control)

    def _hold_back(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> TrainerControl:
        """No checkpoint without a posterior can become the best one: evaluation waits for two snapshots."""
        if args.load_best_model_at_end and state.global_step < self.steps[1]:
            control.should_evaluate = False
        return control


class SwagTrainer(AdapterTrainer):
    """A Trainer with SWAG's schedule."""

    lr_scheduler: Any

    def __init__(self, *args: Any, swag: Swag, **kwargs: Any) -> None:
        self.swag = swag
        super().__init__(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The run's schedule down to the constant learning rate."""
        if self.lr_scheduler is None:
            optimizer = optimizer if optimizer is not None else self.optimizer
            assert optimizer is not None
            arguments: TrainingArguments = self.args
            steps = int(self.swag.swag_start * num_training_steps)
            probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
            theirs = super().create_scheduler(max(steps, 1), probe)
            if not isinstance(theirs, LambdaLR):
                raise ValueError(
                    f"lr_scheduler_type={arguments.lr_scheduler_type!r} is no function of the step, so it cannot be "
                    "joined to SWAG's constant learning rate. Use 'linear', 'cosine' or 'constant'."
                )
            rate = annealed(
                theirs.lr_lambdas[0],
                steps=steps,
                warmup=arguments.get_warmup_steps(max(steps, 1)),
                floor=self.swag.constant_learning_rate / self.swag.learning_rate,
            )
            self.lr_scheduler = LambdaLR(optimizer, rate)
        schedule: LRScheduler = self.lr_scheduler
        return schedule
