"""`import varlora` is quick, and its names are there all the same."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import varlora


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, varlora; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(set(varlora.__all__) - {"__version__"}))
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(varlora, name).__name__ == {"metrics": "varlora.metrics"}.get(name, name)


@pytest.mark.parametrize("package", ["varlora", "varlora.curvature", "varlora.ivon", "varlora.methods"])
def test_no_public_name_is_a_module_s_too(package: str) -> None:
    """Importing the module would put it in the place of the function."""
    module = importlib.import_module(package)
    modules = {one.name for one in pkgutil.iter_modules(module.__path__)}

    assert modules & set(module.__all__) <= {"metrics"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No varlora attribute IVONN"):
        varlora.IVONN  # type: ignore[attr-defined]  # noqa: B018
