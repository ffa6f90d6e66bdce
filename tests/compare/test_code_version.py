"""The code's version changes with what can change a number, and with nothing else."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from varlora.compare import code_version as module
from varlora.compare.code_version import ENTRIES, PACKAGE, Sources, code_version

FILES = {
    "__init__.py": "",
    "run.py": "from varlora.layers import Wide\nfrom varlora.metrics import mean\n",
    "layers/__init__.py": "from varlora.layers.wide import Wide\nfrom varlora.layers.deep import Deep\n",
    "layers/wide.py": (
        '"""Wide."""\n\nWIDTH = 3  # of it\n\n\nclass Wide:\n    """As wide."""\n\n    size: int = WIDTH\n'
        '    """Of it."""\n'
    ),
    "layers/deep.py": "DEPTH = 4\n",
    "metrics.py": (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from varlora.layers.deep import DEPTH\n"
        "def mean(values):\n    from varlora.sums import total\n    return total(values) / len(values)\n"
    ),
    "sums.py": "def total(values):\n    return sum(values)\n",
    "report/__init__.py": "",
    "compare/__init__.py": "",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose `run` imports `layers.wide`, `metrics` and, within a function, `sums`."""
    for name, text in FILES.items():
        file = tmp_path / "varlora" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "varlora"


def version(package: Path) -> str:
    return Sources({"varlora": package}).hash_of("varlora.run")


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("layers/wide.py", "  # of it", ""),
        ("layers/wide.py", '"""Wide."""', '"""Wider than\nbefore."""'),
        ("layers/wide.py", '"""As wide."""', '"""As wide as it is."""'),
        ("layers/wide.py", '    """Of it."""\n', ""),
        ("layers/wide.py", "WIDTH = 3", "WIDTH = (3)\n"),
        ("layers/deep.py", "DEPTH = 4", "DEPTH = 5"),  # nothing of it is imported, but for types
        ("layers/__init__.py", "from varlora.layers.deep import Deep\n", ""),
        ("report/__init__.py", "", "x = 1"),
        ("compare/__init__.py", "", "x = 1"),
    ],
)
def test_what_can_change_no_number_leaves_the_version(package: Path, file: str, old: str, new: str) -> None:
    before = version(package)
    replaced(package / file, old, new)
    assert version(package) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("layers/wide.py", "WIDTH = 3", "WIDTH = 3.0"),
        ("layers/wide.py", "size: int", "width: int"),
        ("sums.py", "sum(values)", "sum(values, 0)"),  # imported by what is imported, within a function
        ("layers/__init__.py", "layers.wide import Wide", "layers.deep import DEPTH as Wide"),
        ("run.py", "metrics import mean", "sums import total"),
    ],
)
def test_what_a_cell_imports_is_in_the_version(package: Path, file: str, old: str, new: str) -> None:
    before = version(package)
    replaced(package / file, old, new)
    assert version(package) != before


def test_a_renamed_module_is_another_version(package: Path) -> None:
    before = version(package)
    (package / "sums.py").rename(package / "total.py")
    replaced(package / "metrics.py", "varlora.sums", "varlora.total")
    assert version(package) != before


def test_what_shows_or_orders_runs_is_left_out_whoever_imports_it(package: Path) -> None:
    before = version(package)
    (package / "report" / "tables.py").write_text("from varlora.layers import Deep\n")
    (package / "compare" / "plan.py").write_text("import varlora.layers.wide\n")
    replaced(package / "run.py", "from varlora.metrics", "import varlora.report.tables\nfrom varlora.metrics")
    found = Sources({"varlora": package})
    assert version(package) != before  # `run` itself has changed
    expected = {f"varlora.{name}" for name in ("run", "layers.wide", "metrics", "sums")}
    assert found.reached_from("varlora.run") == expected
    assert found.reached_from("varlora.compare.plan") == {"varlora.layers.wide"}


def test_the_modules_behind_a_cell() -> None:
    found = module._own_sources().reached_from(*ENTRIES, "varlora.methods.ivon")
    named = {
        "runs.run",
        "runs.tune",
        "training.adapter_trainer",
        "ivon.optimizer",
        "ivon.trainer",
        "posterior.folder",
        "posterior.ops.pruning",
        "prediction.prediction",
        "readout.readout",
        "methods.ivon",
        "tasks",
    }
    assert {f"varlora.{name}" for name in named} <= found
    left_out = {"methods.blob", "methods.swag", "curvature.ggn", "report.tables", "cli.train", "compare.plan"}
    assert all((PACKAGE / f"{name.replace('.', '/')}.py").is_file() for name in left_out)
    assert not {f"varlora.{name}" for name in left_out} & found
    assert "varlora.curvature.ggn" in module._own_sources().reached_from("varlora.methods.laplace")


def test_imports_are_all_of_the_kind_that_is_followed() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not re.search(r"^ *from \.|import \*", file.read_text(encoding="utf-8"), re.MULTILINE), file


def test_methods_and_tasks_of_other_packages_count_with_what_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "sizes.py").write_text("SIZE = 1\n")
    (folder / "method.py").write_text("from foreign.sizes import SIZE\n\n\nclass Lion:\n    pass\n")
    (folder / "task.py").write_text("PROMPT = 'Which?'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = importlib.import_module("foreign.method").Lion
    monkeypatch.setattr(module, "METHODS", {"lion": kind})
    monkeypatch.setattr(module, "TASKS", SimpleNamespace(module_of={"den": "foreign.task", "sst2": None}.get))
    monkeypatch.setattr(module, "ENTRIES", ())
    versions = code_version.__wrapped__
    alone, before = versions("lion", "sst2"), versions("lion", "den")
    assert alone != before
    (folder / "task.py").write_text("PROMPT = 'Which one?'\n")
    assert versions("lion", "den") != before
    assert versions("lion", "sst2") == alone
    (folder / "sizes.py").write_text("SIZE = 2\n")
    assert versions("lion", "sst2") != alone
    kind.__module__ = "builtins"  # as if defined in a notebook
    with pytest.raises(ValueError, match="the source of builtins is in no file"):
        versions("lion")
    for name in [name for name in sys.modules if name.partition(".")[0] == "foreign"]:
        monkeypatch.delitem(sys.modules, name)
