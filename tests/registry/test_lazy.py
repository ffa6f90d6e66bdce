"""`import varlora` is quick, and its names are there all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

import varlora


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, varlora; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(set(varlora.__all__) - {"__version__"}))
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(varlora, name).__name__ in (name, f"varlora.{name}")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'varlora' has no attribute 'IVONN'"):
        varlora.IVONN  # type: ignore[attr-defined]  # noqa: B018
