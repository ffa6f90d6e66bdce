r"""What `ess="auto"`, `ess=None`, `hess_init="auto"` and `prior_width="auto"` stand for.

λ and h0 come from the number of training examples:

    auto:   λ = 100 N,      h0 = N / λ = .01

so that the posterior's precision starts at λ (h0 + δ) = N + 1/s²: one unit for each example, whatever the loss's
curvature, and the prior's. These constants are our choice, by experiment.
The width of the movement prior comes from the share of the training that is over: `set_prior_width`.

Source: the rule λ = 5000 √N of `ess=None` is Cong et al. 2025, arXiv 2506.14280.
"""

from __future__ import annotations

import math
from typing import Any

from varlora.posterior.wrapped import unwrapped

ESS_PER_EXAMPLE = 100.0
"""λ/N of `ess="auto"`."""
ESS_PER_ROOT_EXAMPLE = 5000.0
"""γ of the rule λ = γ √N (arXiv 2506.14280)."""


def auto_ess(num_examples: int) -> float:
    """The effective sample size λ = 100 N.

    Args:
        num_examples: N, the number of training examples.

    Example:
        >>> auto_ess(400)
        40000.0
    """
    return ESS_PER_EXAMPLE * num_examples


def auto_hess_init(num_examples: int, ess: float) -> float:
    """The initial Hessian h0 = N / λ: .01 at λ = 100 N.

    Args:
        num_examples: N.
        ess: λ.

    Example:
        >>> auto_hess_init(400, ess=auto_ess(400))
        0.01
    """
    return num_examples / ess


def root_ess(num_examples: int) -> float:
    """The effective sample size λ = 5000 √N of the recipe "cong2025".

    Args:
        num_examples: N.

    Returns:
        λ. It is larger than N below N = 25 million, so the posterior is colder than Bayes' (λ = N).

    Example:
        >>> root_ess(400)
        100000.0

    Source: arXiv 2506.14280.
    """
    return ESS_PER_ROOT_EXAMPLE * math.sqrt(num_examples)


def is_open(group: dict[str, Any]) -> bool:
    """Whether a parameter group of IVON waits for the number of examples.

    Example:
        >>> is_open({"ess": "auto", "hess_init": 0.01}), is_open({"ess": 1e5, "hess_init": 0.01})
        (True, False)
    """
    return group["ess"] in (None, "auto") or group["hess_init"] == "auto"


def set_prior_width(optimizer: Any, share: float) -> None:
    """Sets the movement prior's width by how much of the training is over, where it was left open; a number stays.

    An integration does it; in a loop of your own call it before the first step, with 0, and after every step.

    Args:
        optimizer: IVON, possibly inside accelerate's wrapper.
        share: of the training's steps that has been taken, at least 0; more than 1 is 1.

    Raises:
        ValueError: share is negative or no number.

    Example:
        >>> import torch
        >>> from varlora import IVON
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> optimizer = IVON(
        ...     [weight], lr=1e-3, ess=1e4, hess_init=0.01, betas=(0.9, 1.0), prior="movement", update="adam"
        ... )
        >>> set_prior_width(optimizer, 0.5)
        >>> optimizer.param_groups[0]["prior_width"]
        2.0
    """
    unwrapped(optimizer).set_prior_width(share)


def settle(group: dict[str, Any], num_examples: int) -> None:
    """Writes λ and h0 into a parameter group where they were left open; what is a number stays.

    Args:
        group: one of IVON's parameter groups.
        num_examples: N.

    Example:
        >>> group = {"ess": "auto", "hess_init": "auto"}
        >>> settle(group, num_examples=200)
        >>> group                                  # auto_ess: where a steered λ started (`varlora.ivon.steering`)
        {'ess': 20000.0, 'hess_init': 0.01, 'auto_ess': 20000.0}
    """
    if group["ess"] is None:
        group["ess"] = root_ess(num_examples)
    elif group["ess"] == "auto":
        group["ess"] = group["auto_ess"] = auto_ess(num_examples)
    if group["hess_init"] == "auto":
        group["hess_init"] = auto_hess_init(num_examples, group["ess"])
