"""Optimizers inside wrappers, and their states in checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from varlora.posterior.wrapped import restore_from, unwrapped


def adam() -> torch.optim.Adam:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([p], lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    return optimizer


def test_every_wrapper_is_taken_off() -> None:
    optimizer = adam()
    assert unwrapped(SimpleNamespace(optimizer=Accelerator(cpu=True).prepare(optimizer))) is optimizer


def test_a_state_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    saved, other = adam(), torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    torch.save(saved.state_dict(), tmp_path / "optimizer.pt")
    restore_from(other, tmp_path)
    assert other.param_groups[0]["lr"] == 0.1
    [state], [expected] = other.state.values(), saved.state.values()
    assert torch.equal(state["exp_avg"], expected["exp_avg"])


def test_a_checkpoint_without_a_state_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"optimizer\.pt is missing.*save_only_model=False"):
        restore_from(adam(), tmp_path)
