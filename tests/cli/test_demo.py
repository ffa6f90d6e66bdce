"""`varlora demo`: what it hands to `compare`, and which folders it takes, replaces and refuses."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cli.workshop import Outcome
from varlora.cli import compare
from varlora.compare import read_plan
from varlora.demo.data import plan_file

Call = Callable[..., Outcome]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """What `varlora compare` is asked."""
    arguments: list[Namespace] = []
    monkeypatch.setattr(compare, "execute", arguments.append)
    return arguments


def begun(folder: Path, name: str) -> Path:
    """The folder of a comparison of that name."""
    folder.mkdir()
    values = {**read_plan(plan_file()).to_dict(), "name": name}
    (folder / "plan.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def test_compare_gets_the_plan_and_the_options(call: Call, handed: list[Namespace], tmp_path: Path) -> None:
    assert call("demo", "--output_dir", tmp_path / "demo", "--seeds", 4, 5, "--no_progress").code == 0
    (arguments,) = handed
    assert (arguments.plan, arguments.seeds) == (str(plan_file()), [4, 5])
    assert (arguments.output_dir, arguments.no_progress) == (str(tmp_path / "demo"), True)
    assert not arguments.dry_run


def test_a_demo_goes_on_and_is_replaced_if_asked(call: Call, handed: list[Namespace], tmp_path: Path) -> None:
    folder = begun(tmp_path / "demo", read_plan(plan_file()).name)
    assert call("demo", "--output_dir", folder).code == 0
    assert (folder / "plan.yaml").is_file()
    assert call("demo", "--output_dir", folder, "--overwrite").code == 0
    assert not folder.exists()
    assert len(handed) == 2


@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_nothing_else_is_touched(call: Call, handed: list[Namespace], tmp_path: Path, words: list[str]) -> None:
    folder = begun(tmp_path / "mine", "my-study")
    done = call("demo", "--output_dir", folder, *words)
    assert done.code == 1
    assert "holds files that are not of a demo, so it is neither used nor replaced" in done.err
    assert (folder / "plan.yaml").is_file()
    assert handed == []


def test_a_demo_of_an_earlier_version(call: Call, handed: list[Namespace], tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{}", encoding="utf-8")
    done = call("demo", "--output_dir", tmp_path)
    assert (done.code, handed) == (1, [])
    assert "the demo of an earlier version of varlora, which this one cannot go on with" in done.err
    done = call("report", tmp_path)
    assert done.code == 1
    assert f"varlora report {tmp_path}/runs/*" in done.err
    assert call("demo", "--output_dir", tmp_path, "--overwrite").code == 0
    assert not tmp_path.exists()
