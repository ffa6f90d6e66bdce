"""The methods, one file each, under one contract (`varlora.methods.method.Method`).

A method is imported when it is looked up, so that `varlora methods` and `varlora train --help` do not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
