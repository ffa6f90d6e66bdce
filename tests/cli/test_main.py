"""The command line as a whole: help, hints, exit codes, and a quick start."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from tqdm import tqdm

from cli.workshop import Outcome
from varlora.cli import COMMANDS, parser_of
from varlora.cli.console import err, set_up
from varlora.cli.options.selective import SET_SCORES, SURENESS
from varlora.cli.options.tune import DRAWS, FRACTIONS, TEMPERATURES
from varlora.methods import METHODS
from varlora.metrics.conformal import SetScore
from varlora.metrics.selective import Sureness
from varlora.runs.space import Grid
from varlora.tasks import TASKS

Call = Callable[..., Outcome]


def test_the_overview_names_every_command(call: Call) -> None:
    shown = call("--help")

    assert shown.code == 0
    assert all(name in shown.out for name in COMMANDS)
    assert call().code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(call: Call, command: str) -> None:
    shown = call(command, "--help")

    assert (shown.code, "Examples:" in shown.out) == (0, True)
    assert f"varlora {'train' if command in ('methods', 'tasks') else command}" in shown.out.split("Examples:")[1]


@pytest.mark.parametrize("command", ["train", "eval", "predict", "compare"])
def test_the_first_screen_of_help_has_the_options_that_people_need(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = call(command, "--help").out
    first = re.findall(r"^  (?:-\w, )?--(\w+)", "\n".join(shown.splitlines()[:40]), re.MULTILINE)

    assert tuple(first[:10]) == parser_of(command).first
    assert len(re.findall(r"^  --(\w+)", shown, re.MULTILINE)) == len(
        set(re.findall(r"^  --(\w+)", shown, re.MULTILINE))
    )


def test_lists(call: Call) -> None:
    assert all(name in call("methods").out for name in METHODS)
    assert all(name in call("tasks").out for name in TASKS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["--hepl"], "unknown option '--hepl'"),
        (["train", "--lora_rank", "3"], "unknown option --lora_rank; did you mean '--lora_r'?"),
        (["train", "--lerning-rate=3"], "did you mean '--learning_rate'?"),
        (["train", "--lora_r", "three"], "argument --lora_r: invalid int value: 'three'"),
        (["train", "--prior", "x"], "invalid choice: 'x'"),
        (["train", "extra"], "unexpected 'extra'"),
        (["eval"], "RUN"),
        (["prune", "run", "--output_dir", "new"], "--fraction"),
    ],
)
def test_a_wrong_command_line_exits_with_2(call: Call, words: list[str], message: str) -> None:
    refused = call(*words)

    assert (refused.code, message) == (2, message if message in refused.err else refused.err)
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lora_rank: 3", "unknown option 'lora_rank'; did you mean 'lora_r'?"),
        ("lora_r: three", "recipe.yaml: argument --lora_r: invalid int value: 'three'"),
        ("lora_r: [1, 2]", "argument --lora_r: invalid int value: '1,2'"),
        ("lora_r: {a: 1}", "lora_r is {'a': 1}; it must be one value, or a list"),
        ("overwrite: true", "unknown option 'overwrite'"),
        ("method: adamw\ness: 3", "recipe.yaml: method 'adamw' has no option ess"),
        ("method: adamw\ness: null", "model_name_or_path is ''"),
        ("method: [adamw]", "method is \"['adamw']\""),
        ("- a", "must hold one mapping"),
    ],
)
def test_a_wrong_yaml_file(call: Call, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)

    refused = call("train", "--config", file)

    assert (refused.code, message) == (1, message if message in refused.err else refused.err)
    assert call("train", "--config", tmp_path / "no.yaml").code == 1


def test_debug_shows_the_traceback(call: Call) -> None:
    with pytest.raises(ValueError, match="model_name_or_path"):
        call("train", "--debug")


def test_help_lists_and_typos_wait_for_no_library() -> None:
    lines = [
        *([command, "--help"] for command in COMMANDS),
        ["--help"],
        ["methods"],
        ["tasks"],
        ["trian"],
        ["train", "--learnig_rate", "1"],
        ["predict", "run"],
        ["train", "--task", "sst2"],
        ["train", "--model_name_or_path=m", "--output_dir=o", "--task=sst2", "--method=ivom"],
    ]
    code = (
        "import sys, varlora.cli\n"
        f"for words in {lines}:\n"
        "    varlora.cli.main(words)\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'peft', 'pyarrow'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]


def test_options_offer_what_there_is() -> None:
    assert get_args(Sureness) == SURENESS
    assert get_args(SetScore) == SET_SCORES
    grid = Grid()
    assert (grid.temperatures, grid.samples, grid.fractions) == (TEMPERATURES, DRAWS, FRACTIONS)


@pytest.mark.parametrize(
    ("command", "words", "name", "found", "default"),
    [
        (
            "compare",
            ["plan.yaml", "--only", "task=a", "--only=method=b", "--only", "seed=1"],
            "only",
            ["task=a", "method=b", "seed=1"],
            [],
        ),
        ("compare", ["plan.yaml", "--seeds", "1", "--seeds", "2", "3"], "seeds", [1, 2, 3], None),
        ("tune", ["run", "--samples", "5", "--samples", "20"], "samples", [5, 20], DRAWS),
        (
            "decide",
            ["run", "--cost-wrong", "ham=10", "--cost_wrong", "spam=1"],
            "cost_wrong",
            ["ham=10", "spam=1"],
            None,
        ),
    ],
)
def test_words_of_an_option_given_more_than_once_are_one_list(
    command: str, words: list[str], name: str, found: list[object], default: object
) -> None:
    assert getattr(parser_of(command).parse(words), name) == found
    assert getattr(parser_of(command).parse(words[:1]), name) == default


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["--shift_tasks", "boolq", "--shift-tasks=sst2"]),
        ("train", ["--lora_target_modules", "q_proj", "--lora_target_modules", "v_proj"]),
        ("eval", ["run", "--answers", "a,b", "--answers", "c"]),
    ],
)
def test_of_two_lists_in_one_word_neither_is_dropped(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser_of(command).parse(words)
    assert "one list is read: write it once, comma-separated" in " ".join(capsys.readouterr().err.split())


def test_a_list_on_the_command_line_goes_before_the_files(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("lora_target_modules: [q_proj, k_proj]\n", encoding="utf-8")
    words = ["--config", str(file), "--lora_target_modules", "v_proj", "--lora-target-modules", "v_proj"]
    assert parser_of("train").parse(words).lora_target_modules == "v_proj"


def test_module_and_exit_code_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-m", "varlora", "trian"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")


def test_a_note_in_a_log_is_one_line_and_no_part_of_a_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(err, "_width", 40)
    set_up(debug=False)
    capsys.readouterr()

    with tqdm(total=1, desc="train", bar_format="{desc}"):
        logging.getLogger("varlora").info("%s is unpacked", "/folder" * 20)

    assert "/folder" * 20 + " is unpacked\n" in capsys.readouterr().err.split("\r")
