"""The life of a draw, which weight noise and random factors share."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from varlora.ivon.noise import Draw, DrawCycle


class Watched(DrawCycle):
    """Writes down its draws; they are used when a gradient reaches the model's output."""

    def __init__(self) -> None:
        self.steps = SimpleNamespace(step_index=0)
        self.inner = nn.Linear(1, 1)
        super().__init__(nn.Sequential(self.inner), seed=3, rank=2, optimizer=self.steps)
        self.begun: list[tuple[int, int, int]] = []
        self.seen: list[bool] = []
        self.inner.register_forward_hook(lambda *_: self.seen.append(self.sampling))
        self.attach()

    def begin(self, draw: Draw) -> None:
        self.begun.append((draw.step, draw.index, draw.rank))

    def forward(self) -> Tensor:
        output: Tensor = self.model(torch.ones(1, 1))
        if output.requires_grad:
            output.register_hook(lambda _: self.mark_used())  # type: ignore[no-untyped-call]
        return output

    def micro_batch(self) -> None:
        self.forward().backward()


def test_each_micro_batch_has_its_draw_and_each_step_begins_at_the_first() -> None:
    cycle = Watched()
    for step in range(2):
        cycle.steps.step_index = step
        cycle.micro_batch()
        cycle.micro_batch()
    assert cycle.begun == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]


def test_a_draw_that_no_backward_pass_has_used_stays_but_not_into_the_next_step() -> None:
    """Or a run that is resumed there would draw another than the one that never stopped."""
    cycle = Watched()
    cycle.forward()
    assert cycle.waiting
    cycle.micro_batch()
    assert not cycle.waiting
    cycle.forward()
    cycle.steps.step_index = 1
    assert not cycle.waiting
    cycle.micro_batch()
    assert cycle.begun == [(0, 0, 2), (0, 1, 2), (1, 0, 2)]


def test_only_training_within_a_step_sees_the_draw() -> None:
    cycle = Watched()
    cycle.inner(torch.ones(1, 1))  # before any draw
    cycle.forward()
    with torch.no_grad():
        cycle.forward()
    cycle.model.eval()
    cycle.forward()
    cycle.model.train()
    cycle.inner(torch.ones(1, 1))  # a part of the model, while the draw is there
    cycle.steps.step_index = 1
    cycle.inner(torch.ones(1, 1))  # the step is over
    assert cycle.seen == [False, True, False, False, True, False]
    cycle.rest()
    assert not cycle.sampling
    cycle.detach()
    assert not cycle.model._forward_hooks
    assert not cycle.model._forward_pre_hooks


def test_a_step_that_does_not_go_on_begins_anew() -> None:
    class Abandoned(Watched):
        def goes_on(self) -> bool:
            return False

    cycle = Abandoned()
    cycle.micro_batch()
    cycle.micro_batch()
    assert cycle.begun == [(0, 0, 2), (0, 0, 2)]
