"""What a training notes beside its optimizer's state: in the first parameter group, so that checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

from varlora.posterior.wrapped import unwrapped


class TrainingRecord(TypedDict, total=False):
    """Plain values; what was not noted is not there.

    Attributes:
        base_fingerprint: of the base model that is trained on.
        base_loading: how its weights were loaded.
        task: what the rows are and how they are worded (`varlora.tasks.description`).
        counted: the training examples, as they were counted for λ (`varlora.training.examples`).
        auto_ess: the λ that held-out rows may move, where it began.
        held_out: the running averages over the held-out rows (`varlora.posterior.held_out_record`).
        held_out_rows: how many there are.
        held_out_source: where they come from.
        held_out_readout: how their answers are read.
        held_out_why: why none steer λ.
    """

    base_fingerprint: Mapping[str, Any] | None
    base_loading: Mapping[str, Any] | None
    task: Mapping[str, Any]
    counted: Mapping[str, Any]
    auto_ess: float | None
    held_out: Mapping[str, Any]
    held_out_rows: int
    held_out_source: str
    held_out_readout: Mapping[str, Any] | None
    held_out_why: str


def training_record(optimizer: Any) -> TrainingRecord:
    """The record of an optimizer, to read and to write.

    Args:
        optimizer: PyTorch's, possibly inside accelerate's wrapper.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> training_record(optimizer)["counted"] = {"examples": 40}
        >>> optimizer.state_dict()["param_groups"][0]["counted"]
        {'examples': 40}
    """
    return record_in(unwrapped(optimizer).param_groups)


def record_in(groups: Any) -> TrainingRecord:
    """The record in an optimizer's parameter groups, as a checkpoint holds them, too.

    Example:
        >>> record_in([{"lr": 0.1, "held_out_why": "too few"}])["held_out_why"]
        'too few'
    """
    return cast(TrainingRecord, groups[0])
