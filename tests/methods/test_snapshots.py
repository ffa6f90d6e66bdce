"""AdamW with snapshots: its steps are AdamW's, and its snapshots survive a checkpoint unrounded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from varlora.methods.snapshots import SnapshotAdamW, snapshot_adamw


def gradient_step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], step: int) -> None:
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(p.dtype)
    optimizer.step()


def test_snapshots_are_adamws_weights_and_do_not_disturb_it() -> None:
    mine, theirs = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    snapshots, plain = SnapshotAdamW([mine], lr=0.1), torch.optim.AdamW([theirs], lr=0.1)
    path = []
    for step in range(4):
        for p, optimizer in ((mine, snapshots), (theirs, plain)):
            gradient_step(optimizer, [p], step)
        path.append(theirs.detach().clone())
        snapshots.take_snapshot()
    assert torch.equal(snapshots.state[mine]["snapshots"], torch.stack(path))


def test_snapshots_of_half_precision_parameters_come_back_unrounded() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = SnapshotAdamW([p], lr=0.1)
    gradient_step(optimizer, [p], 0)
    optimizer.take_snapshot()
    half = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    loaded = SnapshotAdamW([half], lr=0.1)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.state[half]["snapshots"].dtype == torch.float32
    assert torch.equal(loaded.state[half]["snapshots"], optimizer.state[p]["snapshots"])
    assert loaded.state[half]["exp_avg"].dtype == torch.bfloat16
    loaded.take_snapshot()
    assert loaded.state[half]["snapshots"].dtype == torch.float32
    optimizer.take_snapshot()  # the loaded state is a copy
    assert len(loaded.state[half]["snapshots"]) == 2


def test_a_parameter_whose_first_gradient_comes_after_a_snapshot_trains_as_without() -> None:
    early, late = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = SnapshotAdamW([early, late], lr=0.1)
    with pytest.raises(ValueError, match="taken no step"):
        optimizer.take_snapshot()
    gradient_step(optimizer, [early], 0)
    optimizer.take_snapshot()
    early.grad = None
    gradient_step(optimizer, [late], 1)
    optimizer.take_snapshot()
    alone = torch.nn.Parameter(torch.ones(2))
    gradient_step(torch.optim.AdamW([alone], lr=0.1), [alone], 1)
    assert torch.equal(late, alone)
    assert torch.equal(optimizer.state[late]["snapshots"], torch.stack([torch.ones(2), alone.detach()]))


def test_it_is_found_inside_a_wrapper_and_nothing_else_is_taken_for_it() -> None:
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = SnapshotAdamW([p])

    class Wrapper:
        def __init__(self, inner: object) -> None:
            self.optimizer = inner

    assert snapshot_adamw(Wrapper(Wrapper(optimizer))) is optimizer
    with pytest.raises(TypeError, match="SWAG needs its own AdamW, but the trainer's optimizer is AdamW"):
        snapshot_adamw(Wrapper(torch.optim.AdamW([p])))
