"""Completion, in a real bash."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.workshop import Outcome
from varlora.cli import COMMANDS
from varlora.methods import METHODS

Call = Callable[..., Outcome]

pytest.importorskip("shtab")

ASKED = """
source "$1"
COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2)) COMP_LINE="${*:2}" COMP_POINT=${#COMP_LINE}
$(complete -p varlora | sed 's/.*-F \\([^ ]*\\).*/\\1/') 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_values_and_files(call: Call, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(call("completion", "bash").out, encoding="utf-8")
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "runs").mkdir()

    def completed(*words: str) -> list[str]:
        asked = ["bash", "--norc", "-c", ASKED, "bash", str(script), "varlora", *words]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.split()

    subprocess.run(["bash", "-n", str(script)], check=True)
    assert set(completed("")) >= set(COMMANDS)
    assert completed("pred") == ["predict"]
    assert completed("train", "--lora_la") == ["--lora_layers"]
    assert completed("train", "--ess") == ["--ess"]  # of a method
    assert set(completed("train", "--method", "")) == set(METHODS)
    assert completed("train", "--dtype", "b") == ["bfloat16"]
    assert completed("predict", "runs", "--input_file", "ro") == ["rows.jsonl"]
    assert completed("predict", "r") == ["runs"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_every_command(call: Call, shell: str) -> None:
    script = call("completion", shell).out

    assert all(command in script for command in COMMANDS)
    assert "target_accuracy" in script


def test_without_shtab_it_is_said_what_to_install(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused = call("completion", "bash")

    assert (refused.code, "pip install 'varlora[completion]'" in refused.err) == (1, True)
