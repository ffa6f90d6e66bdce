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

from collections.abc import Sequence
from typing import TYPE_CHECKING

from varlora.ivon.prior import Group, Prior, State

if TYPE_CHECKING:
    from torch import Tensor

PRIOR_DAMPING = 0.1
PRIOR_STD_MIN = 0.02


class AdaptivePrior(Prior):
    """N(0, s²), s² learned; see the module. The state holds 1/s² as "prior_precision".

    Example:
        >>> import torch
        >>> AdaptivePrior().deltas([{"prior_precision": torch.tensor(50.0)}], {"ess": 100.0})
        [0.5]
    """

    name = "adaptive"

    def initial_state(self, like: Tensor, group: Group) -> dict[str, Tensor]:
        """1/s², by the weight decay where there is one."""
        import torch

        given = torch.tensor(group["ess"] * group["weight_decay"], dtype=like.dtype, device=like.device)
        return {"prior_precision": given if group["weight_decay"] else initial_prior_precision(like)}

    def renew_(self, states: Sequence[State], means: Sequence[Tensor], group: Group) -> None:
        """A tenth of the way to the closed form; where h is learned, a falling δ must leave h + δ positive."""
        import torch

        from varlora.posterior.sharded import local

        hessians = [state["hessian"] for state in states]
        precisions = [state["prior_precision"] for state in states]
        renewed = renewed_prior_precisions(torch.stack(precisions), means, hessians, group["ess"])
        torch._foreach_copy_(precisions, list(renewed.unbind()))
        if (lowest := self.lowest(self.deltas(states, group), group)) is not None:
            torch._foreach_clamp_min_([local(hessian) for hessian in hessians], lowest)

    def deltas(self, states: Sequence[State], group: Group) -> list[float]:
        """δ = 1/(λ s²)."""
        import torch

        precisions = torch.stack([state["prior_precision"] for state in states])
        return (precisions / group["ess"]).tolist()  # type: ignore[no-any-return]

    def lowest(self, deltas: Sequence[float], group: Group) -> list[float] | None:
        """−δ/2 where h is learned, and may be below 0: δ falls where s² grows, and where λ does, whoever moves it."""
        return [-0.5 * delta for delta in deltas] if group["betas"][1] < 1 else None


def adaptive_priors(means: Sequence[Tensor], hessians: Sequence[Tensor], ess: float, deltas: Tensor) -> Tensor:
    """Of each tensor, the δ that minimises KL(N(m, v) ‖ N(0, 1/(λ δ))) with v = 1/(λ (h + δ)) held at the given δ.

    Args:
        means: m of n tensors, any shapes; parts of them may be on other ranks.
        hessians: h of each, with h + δ > 0.
        ess: λ.
        deltas: the present δ of each, (n,).

    Returns:
        1 / (λ · mean(m² + v)) of each, (n,).

    Example:
        >>> import torch
        >>> one = torch.ones(3, dtype=torch.float64)
        >>> adaptive_priors([one], [one], 2.0, torch.ones(1, dtype=torch.float64)).tolist()
        [0.4]

    Source: arXiv 2506.14280.
    """
    import torch

    from varlora.posterior.sharded import local, whole_sums

    curvatures = torch._foreach_add([local(h) for h in hessians], deltas.tolist())
    torch._foreach_rsqrt_(curvatures)  # its squared norm is the sum of 1 / (h + δ)
    squares = torch._foreach_norm([local(mean) for mean in means])
    sums = torch.stack(squares).square() + torch.stack(torch._foreach_norm(curvatures)).square() / ess
    sizes = sums.new_tensor([max(mean.numel(), 1) for mean in means])
    return sizes / (ess * whole_sums(sums, means[0]))


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
    from varlora.posterior.sharded import whole

    average = whole(mean.square().sum()) / max(mean.numel(), 1)
    return 1 / average.clamp(min=PRIOR_STD_MIN**2)


def renewed_prior_precisions(
    precisions: Tensor, means: Sequence[Tensor], hessians: Sequence[Tensor], ess: float
) -> Tensor:
    """λδ of each tensor after a step: a tenth of the way, in logarithms, to λ `adaptive_priors`, which .02 bounds.

    Args:
        precisions: the present λδ > 0 of each, (n,).
        means: m of each.
        hessians: h of each.
        ess: λ.

    Example:
        >>> import torch
        >>> precisions, m, h = torch.ones(1), torch.full((1,), 0.5), torch.full((1,), 0.03)
        >>> renewed_prior_precisions(precisions, [m], [h], ess=100.0).item()        # half way there: 2
        1.0717734...
    """
    targets = (ess * adaptive_priors(means, hessians, ess, precisions / ess)).clamp(max=1 / PRIOR_STD_MIN**2)
    return precisions.log().lerp(targets.log(), PRIOR_DAMPING).exp()
