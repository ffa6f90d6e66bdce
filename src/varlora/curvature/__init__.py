"""Curvature of the loss at trained weights, and what it says: a Gaussian, and how likely the data are under a prior.

`layers` takes gradients of linear layers by hooks; `gram` sums outer products, exactly or by a sketch; `ggn` makes the
curvature of them; `evidence` is Laplace's marginal likelihood and the prior that maximises it; `kinds` names the
choices. Names are imported when they are first used, so that the choices can be listed without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
