"""What IVON says of its training, whether it has just ended or lies in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from varlora.ivon.priors import prior_of


def ivon_diagnostics(
    groups: Sequence[Mapping[str, Any]],
    hessians: Mapping[str, tuple[Tensor, float]],
    *,
    ess: Sequence[float],
    steps: int,
    skipped_steps: int,
) -> dict[str, Any]:
    """IVON's part of `PosteriorMeta.diagnostics`: plain JSON.

    Args:
        groups: the optimizer's parameter groups.
        hessians: h and h0 by tensor.
        ess: the different λ of the groups.
        steps: that were taken.
        skipped_steps: that were left out for a gradient that was not finite.
    """
    diagnostics: dict[str, Any] = {
        "hessian_moved": hessian_moved(hessians),
        "steps": steps,
        "skipped_steps": skipped_steps,
    }
    if len(ess) > 1:
        diagnostics["ess_of_groups"] = list(ess)
    if width := prior_width_diagnostics(groups):
        diagnostics["prior_width"] = width
    return diagnostics


def prior_width_diagnostics(groups: Sequence[Mapping[str, Any]]) -> float | list[float] | None:
    """Width of the movement prior, in units of the movement, by parameter group where they differ; None without one.

    Below 4 where training with `prior_width="auto"` was stopped before its end.

    Example:
        >>> prior_width_diagnostics([{"prior": "movement", "prior_width": 4.0, "params": [0]}])
        4.0
    """
    widths = sorted({width for group in groups if (width := prior_of(group).width(group)) is not None})
    if not widths:
        return None
    return widths[0] if len(widths) == 1 else widths


def hessian_moved(hessians: Mapping[str, tuple[Tensor, float]]) -> dict[str, Any]:
    """How far the Hessian has moved from its start: median |h/h0 − 1|, overall and by tensor.

    Near 0, the posterior's variance is the one it was started with, not one that was learned: at β2 = .99999 the
    start keeps 90 % of its weight after 10 000 steps.

    Args:
        hessians: (h, h0) by checkpoint key.

    Example:
        >>> hessian_moved({"w": (torch.tensor([1.0, 1.5, 3.0]), 1.0)})
        {'overall': 0.5, 'by_tensor': {'w': 0.5}}
    """
    moved = {key: (h.detach() / h0 - 1).abs().flatten().cpu() for key, (h, h0) in hessians.items()}
    return {
        "overall": torch.cat([m.double() for m in moved.values()]).median().item(),
        "by_tensor": {key: m.median().item() for key, m in sorted(moved.items())},
    }
