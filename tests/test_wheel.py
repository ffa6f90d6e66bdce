"""The wheel: it builds, holds every file of the package, and runs where nothing of the checkout is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("hatchling")
pytest.importorskip("pip")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (made,) = folder.glob("varlora-*.whl")
    return made


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src"
    package = {path.relative_to(source).as_posix() for path in (source / "varlora").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("varlora/")}

    assert held == package
    ends = {Path(name).suffix for name in held}
    assert {".html", ".js", ".css", ".yaml", ".jsonl", ".safetensors", ".pyi", ".typed"} <= ends


def test_installed_alone_it_runs(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    quietly = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *quietly, "--target", str(installed), str(wheel)], check=True
    )
    env = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "100"}

    def printed(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path, env=env)
        return done.stdout

    assert printed(str(installed / "bin" / "varlora"), "--version").startswith("varlora ")
    where = printed(sys.executable, "-c", "import varlora; print(varlora.__file__, varlora.__version__)")
    assert Path(where.split()[0]).is_relative_to(installed)
    assert "ensemble" in printed(sys.executable, "-m", "varlora", "methods")
