from .evidence import NoBestPriorError as NoBestPriorError
from .evidence import best_prior_precision as best_prior_precision
from .evidence import log_marginal_likelihood as log_marginal_likelihood
from .ggn import Curvature as Curvature
from .ggn import curvature_bytes as curvature_bytes
from .ggn import curvature_of as curvature_of
from .kinds import Fisher as Fisher
from .kinds import Structure as Structure
