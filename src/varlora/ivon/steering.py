"""Steers λ while a transformers Trainer trains: measures held-out rows between steps, and keeps the record.

The record is the optimizer's (`varlora.posterior.training_record`): plain numbers, so that every checkpoint holds it
and a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import logging
import time

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerState

from varlora.ivon.ess_control import steered_ess
from varlora.ivon.held_out import HeldOut
from varlora.ivon.measuring import BEGUN_AFTER, COST, Plan
from varlora.ivon.noise import NoiseController
from varlora.posterior.gaussian_optimizer import AutoOptimizer, GaussianOptimizer
from varlora.posterior.held_out_record import HeldOutRecord
from varlora.posterior.training_record import training_record

logger = logging.getLogger(__name__)

NOTICEABLE = 1.0
"""Seconds of measuring below which its share of the time is not worth a word."""


def plan_of(held_out: HeldOut, work: float, state: TrainerState) -> Plan:
    """When a training asks its held-out rows.

    Args:
        held_out: the rows.
        work: of a training step (`work_of_a_step`).
        state: of the training, as it begins: its number of steps.
    """
    steps = state.max_steps
    end = steps if held_out.until_step is None else min(held_out.until_step, steps)
    return held_out.plan(work, steps=steps, begin=int(BEGUN_AFTER * steps), end=end)


def too_little(plan: Plan, state: TrainerState) -> str:
    """Why rows that are there do not steer."""
    when = "once, when the training ends" if plan.steps else "which would say too little"
    return (
        f"a tenth of the work of {state.max_steps} training steps pays for asking {plan.affordable} held-out rows, "
        f"{when}"
    )


class Steering:
    """Measures held-out rows between training steps and moves λ.

    Args:
        held_out: the rows.
        noise: the noise of the training.
        work: of a training step (`work_of_a_step`).
        state: of the training, as it begins.

    Attributes:
        plan: when the rows are asked.
        spent: seconds that asking them has taken.
        elapsed: those of the whole training, when it has ended.
    """

    def __init__(self, held_out: HeldOut, noise: NoiseController, work: float, state: TrainerState) -> None:
        self.held_out = held_out
        self.noise = noise
        self.plan = plan_of(held_out, work, state)
        self.spent, self.elapsed, self._began = 0.0, 0.0, time.perf_counter()
        self.record = training_record(noise.optimizer)
        self.record.setdefault("held_out", HeldOutRecord().to_dict())
        self.record["held_out_rows"], self.record["held_out_source"] = held_out.num_rows(), held_out.source
        self.record["held_out_readout"] = held_out.readout
        if not any(step < state.max_steps for step in self.plan.steps):
            leave_unsteered(noise.optimizer, too_little(self.plan, state))

    def after_step(self, model: nn.Module, state: TrainerState) -> None:
        """Measures and steers, if it is time to; when the training ends, it measures only."""
        if state.global_step not in self.plan.steps:
            return
        begun = _now(self.noise)
        former = HeldOutRecord.from_dict(self.record["held_out"])
        averages = self.held_out.measured(model, self.noise, former, self.plan.rows)
        self.record["held_out"] = averages.to_dict()
        # Where nothing was found nothing moves, nor does it when no step is left that would train at another λ.
        if averages != former.without_rows() and state.global_step < state.max_steps:
            excess = averages.beyond_chance(self.held_out.num_rows())
            optimizer = self.noise.optimizer
            assert isinstance(optimizer, AutoOptimizer)
            optimizer.move_ess(lambda ess, start: _of_first_rank(steered_ess(ess, start, excess), self.noise))
        self.spent += _now(self.noise) - begun

    def finish(self) -> None:
        """Logs, when the training ends, what share of its time measuring took; warns of more than twice the budget."""
        self.elapsed = _now(self.noise) - self._began
        share = f"asking the held-out rows took {100 * self.spent / self.elapsed:.0f} % of the training's time"
        if self.spent <= max(2 * COST * self.elapsed, NOTICEABLE):
            logger.info("%s.", share)
            return
        logger.warning(
            "%s (%.0f of %.0f s), where a tenth was meant: one of them costs more than a training row. Shorter ones "
            "make it cheaper, and held_out='none' does without.",
            share,
            self.spent,
            self.elapsed,
        )


def leave_unsteered(optimizer: GaussianOptimizer, reason: str) -> None:
    """Says, once, that no rows steer λ and why, and keeps the reason with the optimizer's state."""
    training_record(optimizer)["held_out_why"] = reason
    logger.warning(
        "no held-out rows steer ess: %s. It stays at 100 N: over- or under-confidence is not corrected while training.",
        reason,
    )


def _now(noise: NoiseController) -> float:
    """Seconds, when the device has done what it was asked before."""
    if noise.device.type == "cuda":
        torch.cuda.synchronize(noise.device)
    return time.perf_counter()


def _of_first_rank(value: float, noise: NoiseController) -> float:
    """The first rank's value: kernels of different devices may differ in the last bits."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=noise.device)
    dist.broadcast(shared, src=0)
    return shared.item()
