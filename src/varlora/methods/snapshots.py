"""AdamW that keeps copies of the weights on its way, as its state: checkpoints hold them, resuming restores them."""

from __future__ import annotations

from typing import Any

import torch

from varlora.posterior.wrapped import unwrapped_as


class Snapshots(torch.optim.Optimizer):
    """Keeps copies of the parameters as its state; mix it into an optimizer, in front.

    State per parameter: `snapshots` (K, *shape), float32 (float64 for float64 parameters).
    """

    @torch.no_grad()
    def take_snapshot(self) -> None:
        """Appends a copy of every parameter."""
        for group in self.param_groups:
            for p in group["params"]:
                copy = p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)[None]
                state = self.state[p]
                state["snapshots"] = torch.cat([state["snapshots"], copy]) if "snapshots" in state else copy

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state; snapshots stay in float32 where torch rounds them to a half-precision parameter's dtype."""
        super().load_state_dict(state_dict)
        restore_exactly(self, state_dict, "snapshots")


def restore_exactly(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], key: str) -> None:
    """Restores one entry of the state as it was saved: torch has just rounded it to the parameter's dtype.

    Args:
        optimizer: has loaded the state.
        state_dict: the state.
        key: the entry's name.
    """
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in zip(ids, held, strict=True):
        saved = state_dict["state"].get(i, {}).get(key)
        if saved is not None:
            optimizer.state[p][key] = saved.to(p.device, copy=True)


class SnapshotAdamW(Snapshots, torch.optim.AdamW):
    """PyTorch's AdamW with snapshots."""

    def take_snapshot(self) -> None:
        """Appends a copy of every parameter, also of one that never had a gradient.

        Raises:
            ValueError: no step was taken yet.
        """
        stepped = next((state for state in self.state.values() if "step" in state), None)
        if stepped is None:
            raise ValueError("AdamW has taken no step; there is nothing to take a snapshot of.")
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:  # AdamW begins a state only where there is none
                    self.state[p]["step"] = torch.zeros_like(stepped["step"])
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        super().take_snapshot()


def snapshot_adamw(optimizer: Any) -> SnapshotAdamW:
    """The optimizer inside accelerate's wrapper.

    Raises:
        TypeError: it takes no snapshots.
    """
    return unwrapped_as(optimizer, SnapshotAdamW, "SWAG")
