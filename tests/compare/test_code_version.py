"""The code's version changes with what can change a number, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from varlora.compare.code_version import PACKAGE, code_version, hash_of_sources


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "varlora", ignore=shutil.ignore_patterns("__pycache__")))


def test_the_same_source_has_the_same_version_wherever_it_lies(package: Path) -> None:
    assert hash_of_sources(package) == hash_of_sources(PACKAGE)
    assert code_version() == code_version()


@pytest.mark.parametrize("file", ["ops/pruning.py", "methods/ivon.py", "metrics/calibration.py", "run_config.py"])
def test_a_change_of_what_decides_numbers_is_another_version(package: Path, file: str) -> None:
    before = hash_of_sources(package)
    (package / file).write_text((package / file).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert hash_of_sources(package) != before


def test_a_new_or_renamed_file_is_another_version(package: Path) -> None:
    before = hash_of_sources(package)
    (package / "ops/pruning.py").rename(package / "other.py")
    assert hash_of_sources(package) != before


@pytest.mark.parametrize("file", ["cli/train.py", "report/tables.py", "compare/plan.py", "demo/compare.py", "py.typed"])
def test_what_only_shows_or_orders_runs_is_left_out(package: Path, file: str) -> None:
    before = hash_of_sources(package)
    (package / file).write_text("changed", encoding="utf-8")
    assert hash_of_sources(package) == before
