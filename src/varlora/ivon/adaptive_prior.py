r"""The adaptive prior: each tensor's own N(0, s²), learned in closed form.

For a posterior N(m_j, v_j) over a tensor's entries and a prior N(0, s²) that they share, dKL/ds² = 0 gives

    s² = mean_j(m_j² + v_j),        δ = 1 / (λ s²).

Our choices. A tensor's s starts at its own root mean square and never falls below .02: LoRA's B starts at zero, and
would take its prior, and with it its noise, there. From step to step s² moves a tenth of the way in logarithms, since v
itself depends on δ. What is kept between steps is the prior's precision λδ = 1/s², not δ, so that a change of λ leaves
the prior where it is.

Source: Cong et al. 2025, arXiv 2506.14280.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varlora.ivon.prior import Group, Prior, State

if TYPE_CHECKING:
    from torch import Tensor

PRIOR_DAMPING = 0.1
PRIOR_STD_MIN = 0.02


class AdaptivePrior(Prior):
    """N(0, s²), s² learned; see the module. The state holds 1/s² as "prior_precision".

    Example:
        >>> AdaptivePrior().delta({"prior_precision": 50.0}, {"ess": 100.0})
        0.5
    """

    name = "adaptive"

    def initial_state(self, like: Tensor, group: Group) -> dict[str, Tensor]:
        """1/s², by the weight decay where there is one."""
        import torch

        given = torch.tensor(group["ess"] * group["weight_decay"], dtype=like.dtype, device=like.device)
        return {"prior_precision": given if group["weight_decay"] else initial_prior_precision(like)}

    def renew_(self, state: State, mean: Tensor, group: Group) -> None:
        """A tenth of the way to the closed form; where h is learned, a falling δ must leave h + δ positive."""
        precision, hessian = state["prior_precision"], state["hessian"]
        precision.copy_(renewed_prior_precision(precision, mean, hessian, group["ess"]))
        if group["betas"][1] < 1:
            hessian.copy_(hessian.maximum(-0.5 * self.delta(state, group)))

    def delta(self, state: State, group: Group) -> Any:
        """δ = 1/(λ s²)."""
        return state["prior_precision"] / group["ess"]


def adaptive_prior(mean: Tensor, hessian: Tensor, ess: float, delta: Tensor | float) -> Tensor:
    """The δ that minimises KL(N(m, v) ‖ N(0, 1/(λ δ))) with v = 1/(λ (h + δ)) held at the given δ.

    Args:
        mean: m, any shape.
        hessian: h, same shape.
        ess: λ.
        delta: the present δ, a scalar.

    Returns:
        1 / (λ · mean(m² + v)), a scalar tensor.

    Example:
        >>> import torch
        >>> one = torch.ones(3, dtype=torch.float64)
        >>> adaptive_prior(one, one, 2.0, torch.tensor(1.0, dtype=torch.float64)).item()
        0.4

    Source: arXiv 2506.14280.
    """
    variance = 1 / (ess * (hessian + delta))
    return 1 / (ess * average(mean.square() + variance))


def initial_prior_precision(mean: Tensor) -> Tensor:
    """Where λδ starts: 1 / max(mean(m²), .02²), a scalar tensor.

    Args:
        mean: m, any shape; part of it may be on other ranks.

    Example:
        >>> import torch
        >>> round(initial_prior_precision(torch.tensor([0.1, -0.1])).item())
        100
        >>> round(initial_prior_precision(torch.zeros(3)).item())        # LoRA's B
        2500
    """
    return 1 / average(mean.square()).clamp(min=PRIOR_STD_MIN**2)


def renewed_prior_precision(precision: Tensor, mean: Tensor, hessian: Tensor, ess: float) -> Tensor:
    """λδ after a step: a tenth of the way, in logarithms, to λ `adaptive_prior`, which .02 bounds.

    Args:
        precision: the present λδ > 0, a scalar tensor.
        mean: m.
        hessian: h, same shape.
        ess: λ.

    Example:
        >>> import torch
        >>> precision, m, h = torch.tensor(1.0), torch.full((1,), 0.5), torch.full((1,), 0.03)
        >>> renewed_prior_precision(precision, m, h, ess=100.0).item()        # half way there: 2
        1.0717734...
    """
    target = (ess * adaptive_prior(mean, hessian, ess, precision / ess)).clamp(max=1 / PRIOR_STD_MIN**2)
    return followed(precision, target)


def followed(precision: Tensor, target: Tensor) -> Tensor:
    """A precision that goes a tenth of the way to another, in logarithms.

    Example:
        >>> import torch
        >>> round(followed(torch.tensor(1.0), torch.tensor(1e10)).item(), 3)
        10.0
    """
    return precision.log().lerp(target.log(), PRIOR_DAMPING).exp()


def average(tensor: Tensor) -> Tensor:
    """The mean of all entries, on all ranks, as a plain tensor; 0 of none.

    Example:
        >>> import torch
        >>> average(torch.tensor([1.0, 3.0])), average(torch.zeros(0))
        (tensor(2.), tensor(0.))
    """
    total = tensor.sum()
    whole: Tensor = total.full_tensor() if hasattr(total, "full_tensor") else total
    return whole / max(tensor.numel(), 1)
