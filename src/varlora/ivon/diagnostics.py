"""What IVON says of its training, whether it has just ended or lies in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from varlora.ivon.fit_variance import fit_variance, mean_loss


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
        hessians: h and h0 by tensor, of those whose variance comes from it.
        ess: the different λ of the groups.
        steps: that were taken.
        skipped_steps: that were left out for a gradient that was not finite.
    """
    diagnostics: dict[str, Any] = {"steps": steps, "skipped_steps": skipped_steps}
    if hessians:
        diagnostics["hessian_moved"] = hessian_moved(hessians)
    if len(ess) > 1:
        diagnostics["ess_of_groups"] = list(ess)
    fits: list[dict[str, float | None]] = []
    for group in groups:
        if group["params"] and group["variance"] == "fit" and (fit := fit_diagnostics(group)) not in fits:
            fits.append(fit)
    if fits:
        diagnostics["fit_variance"] = fits
    return diagnostics


def fit_diagnostics(group: Mapping[str, Any]) -> dict[str, float | None]:
    """What a variance that follows the fit came from: one for all entries of a parameter group, learned for none.

    Returns:
        L̄ in nats (None before the first step), S and v.

    Example:
        >>> fit_diagnostics({"ess": 1e4, "lr_sum": 0.25, "loss_sum": 0.0, "loss_weight": 0.05})
        {'mean_loss': 0.0, 'lr_sum': 0.25, 'variance': 0.01}
    """
    return {"mean_loss": mean_loss(group), "lr_sum": float(group["lr_sum"]), "variance": fit_variance(group)}


def hessian_moved(hessians: Mapping[str, tuple[Tensor, float]]) -> dict[str, Any]:
    """How far the Hessian has moved from its start: median |h/h0 − 1|, overall and by tensor.

    Near 0, the posterior's variance is the one it was started with, not one that was learned: at β2 = .99999 the
    start keeps 90 % of its weight after 10 000 steps.

    Args:
        hessians: (h, h0) by checkpoint key; of tensors without entries nothing is said.

    Example:
        >>> hessian_moved({"w": (torch.tensor([1.0, 1.5, 3.0]), 1.0)})
        {'overall': 0.5, 'by_tensor': {'w': 0.5}}
    """
    moved = {key: (h.detach() / h0 - 1).abs().flatten().cpu() for key, (h, h0) in hessians.items() if h.numel()}
    return {
        "overall": torch.cat([m.double() for m in moved.values()]).median().item(),
        "by_tensor": {key: m.median().item() for key, m in sorted(moved.items())},
    }
