"""Curvature of the loss at trained weights, and what it says: a Gaussian, and how likely the data are under a prior.

`layers` takes gradients of linear layers by hooks; `gram` sums outer products, exactly or by a sketch; `ggn` makes the
curvature of them; `evidence` is Laplace's marginal likelihood and the prior that maximises it; `kinds` names the
choices. Names are imported when they are first used, so that the choices can be listed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from varlora.registry.lazy import lazily

if TYPE_CHECKING:
    from varlora.curvature.evidence import NoBestPriorError, best_prior_precision, log_marginal_likelihood
    from varlora.curvature.ggn import Curvature, curvature_bytes, curvature_of
    from varlora.curvature.kinds import Fisher, Structure

__all__ = [
    "Curvature",
    "Fisher",
    "NoBestPriorError",
    "Structure",
    "best_prior_precision",
    "curvature_bytes",
    "curvature_of",
    "log_marginal_likelihood",
]

_HOMES = {
    **dict.fromkeys(("NoBestPriorError", "best_prior_precision", "log_marginal_likelihood"), "evidence"),
    **dict.fromkeys(("Curvature", "curvature_bytes", "curvature_of"), "ggn"),
    **dict.fromkeys(("Fisher", "Structure"), "kinds"),
}
__getattr__ = lazily("varlora.curvature", {name: f"varlora.curvature.{home}" for name, home in _HOMES.items()})
