"""A hash of the code that decides a run's numbers."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
LEFT_OUT = ("cli", "compare", "demo", "report")
"""Rooms that can change no number of a run; the demo's rows and model count by their content."""
LENGTH = 10


@cache
def code_version() -> str:
    """The hash of this varlora's source files, ten hexadecimal digits.

    Example:
        >>> len(code_version())
        10
    """
    return hash_of_sources(PACKAGE)


def hash_of_sources(package: Path) -> str:
    """The hash of a package's Python files by name and content, without the rooms of `LEFT_OUT`.

    Args:
        package: the package's folder.
    """
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py"), key=lambda file: file.relative_to(package).as_posix()):
        name = file.relative_to(package)
        if name.parts[0] not in LEFT_OUT:
            digest.update(f"{name.as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:LENGTH]
