from .optimizer import IVON as IVON
