r"""What `ess="auto"`, `ess=None` and `hess_init="auto"` stand for.

λ and h0 come from the number of training examples:

    auto:   λ = 100 N,      h0 = N / λ = .01

so that a posterior whose variance comes from the Hessian starts at a precision of λ h0 = N: one unit for each example,
whatever the loss's curvature. Of a variance that follows the fit (`ivon.fit_variance`) λ = 100 N is λ_0, where what
steers it begins. These constants are our choice, by experiment.

Source: the rule λ = 5000 √N of `ess=None` is Cong et al. 2025, arXiv 2506.14280.
"""

from __future__ import annotations

import math
from typing import Any

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
        >>> is_open({"variance": "hessian", "ess": 1e4, "hess_init": "auto"})
        True
        >>> is_open({"variance": "fit", "ess": 1e4, "hess_init": "auto"})
        False
    """
    return group["ess"] in (None, "auto") or (group["variance"] == "hessian" and group["hess_init"] == "auto")


def settle(group: dict[str, Any], num_examples: int) -> None:
    """Writes λ and h0 into a parameter group where they were left open; what is a number stays.

    Args:
        group: one of IVON's parameter groups.
        num_examples: N.

    Example:
        >>> group = {"variance": "hessian", "ess": "auto", "hess_init": "auto"}
        >>> settle(group, num_examples=200)
        >>> group["ess"], group["hess_init"]
        (20000.0, 0.01)
        >>> group["auto_ess"]                      # where a steered λ started (`varlora.ivon.steering`)
        20000.0
    """
    if group["ess"] is None:
        group["ess"] = root_ess(num_examples)
    elif group["ess"] == "auto":
        group["ess"] = group["auto_ess"] = auto_ess(num_examples)
    if group["variance"] == "hessian" and group["hess_init"] == "auto":
        group["hess_init"] = auto_hess_init(num_examples, group["ess"])
