"""Variational LoRA: fine-tune a language model and keep a posterior over the adapter's weights.

The public names stand in `__init__.pyi`. They are imported when they are first used, so that `import varlora` and
`varlora --help` take no time.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import lazy_loader

_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    return importlib.metadata.version("varlora") if name == "__version__" else _find(name)
