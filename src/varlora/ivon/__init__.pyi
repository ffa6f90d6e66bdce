from .auto import set_prior_width as set_prior_width
from .optimizer import IVON as IVON
