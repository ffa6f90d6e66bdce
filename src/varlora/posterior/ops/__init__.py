"""What can be done with posteriors: prune, temper, merge, kl, snr. Pure functions; nothing is changed in place.

pruning      signal-to-noise |m| / √v; entries set to 0, of every kind of posterior with marginal m and v
tempering    temperature τ, which scales the covariance
gaussians    diagonal Gaussians in closed form: a prior, KL(q ‖ p), and the product of K posteriors
"""

from varlora.posterior import PointMassError
from varlora.posterior.ops.gaussians import common_prior, isotropic_prior, kl, merge
from varlora.posterior.ops.pruning import prune, snr
from varlora.posterior.ops.tempering import temper

__all__ = ["PointMassError", "common_prior", "isotropic_prior", "kl", "merge", "prune", "snr", "temper"]
