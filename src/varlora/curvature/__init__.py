"""Curvature of the loss at trained weights, and what it says: a Gaussian, and how likely the data are under a prior.

`layers` takes gradients of linear layers by hooks; `gram` sums outer products, exactly or by a sketch; `ggn` makes the
curvature of them; `evidence` is Laplace's marginal likelihood and the prior that maximises it.
"""

from varlora.curvature.evidence import NoBestPriorError, best_prior_precision, log_marginal_likelihood
from varlora.curvature.ggn import Curvature, Fisher, Structure, curvature_bytes, curvature_of

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
