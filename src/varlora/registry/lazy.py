"""Public names that are imported when they are first used, so that `varlora --help` does not wait for torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562).

    Args:
        package: the package's name.
        homes: public name to the module that defines it. No name may be that of a submodule.

    Example:
        >>> find = lazily("numbers", {"sqrt": "math"})
        >>> find("sqrt")(9.0)
        3.0
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return find
