"""`varlora lm-eval`: what it says itself, and what it hands to the harness."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.workshop import Outcome, Workshop
from varlora.cli import lm_eval
from varlora.cli.options.lm_eval import MODEL_ARGUMENTS

Call = Callable[..., Outcome]
TASK = """\
task: films
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}\\nLabel:"
doc_to_choice: [negative, positive]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, workshop: Workshop) -> Path:
    """A folder with a task of the harness."""
    (tmp_path / "tasks").mkdir()
    task = TASK.format(rows=workshop.folder / "test.jsonl", cache=tmp_path / "cache")
    (tmp_path / "tasks" / "films.yaml").write_text(task, encoding="utf-8")
    return tmp_path / "tasks"


@pytest.fixture
def quick_harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The harness without its thousands of task files and what it asks of pip, its log on the stream that is there."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-evaluation-harness is not installed")
    monkeypatch.setattr(tasks, "TaskManager", functools.partial(tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", False)
    log = logging.getLogger("lm_eval")
    level, propagate, handlers = log.level, log.propagate, list(log.handlers)
    yield
    log.setLevel(level)
    log.propagate, log.handlers = propagate, handlers


@pytest.mark.usefixtures("quick_harness")
def test_a_run_is_measured_by_the_harness(call: Call, run_folder: Path, tasks: Path, tmp_path: Path) -> None:
    before = list(sys.argv)
    arguments = f"posterior={run_folder},samples=2,average=completions"
    found = call(
        *("lm-eval", "--model_args", arguments, "--tasks", "films", "--include_path", tasks),
        *("--output_path", tmp_path / "results", "--log_samples", "--batch_size", 4),
    )

    assert found.code == 0, found.err
    assert "|films|" in found.out.replace(" ", "")
    assert "varlora ({'posterior':" in found.out
    (file,) = (tmp_path / "results").rglob("results*.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    told = results["config"]["varlora"]
    assert (told["posterior"], told["draws"], told["average"]) == (str(run_folder), 2, "completions")
    (rows,) = (tmp_path / "results").rglob("samples*.jsonl")
    first = json.loads(rows.read_text(encoding="utf-8").splitlines()[0])
    assert _answers(run_folder, first) == pytest.approx([float(answer[0]) for answer in first["filtered_resps"]])
    assert sys.argv == before


def _answers(run_folder: Path, row: dict[str, Any]) -> list[float]:
    """The same two requests, asked of the model itself."""
    from lm_eval.api.instance import Instance

    from varlora.integrations.lm_eval import PosteriorLM

    asked = row["arguments"]
    pairs = [(asked[name]["arg_0"], asked[name]["arg_1"]) for name in sorted(asked)]
    lm = PosteriorLM(str(run_folder), samples=2, average="completions")
    return [value for value, _ in lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])]


@pytest.mark.usefixtures("quick_harness")
def test_mistakes_are_said_in_a_line(call: Call, run_folder: Path, tasks: Path, tmp_path: Path) -> None:
    def refusal(*words: object) -> str:
        found = call("lm-eval", *words)
        assert found.code == 1
        assert "Traceback" not in found.err
        return found.err

    place = ("--tasks", "films", "--include_path", tasks)
    assert "which is no folder" in refusal("--model_args", f"posterior={tmp_path / 'none'}", *place)
    assert "did you mean 'samples'" in refusal("--model_args", f"posterior={run_folder},sample=2", *place)
    assert "Tasks not found: flims" in refusal("--model_args", f"posterior={run_folder}", "--tasks", "flims")
    assert "give posterior=RUN in --model_args" in refusal(*place)
    assert "For another, call lm-eval itself" in refusal("run", "--model", "hf", *place)
    assert "For another, call lm-eval itself" in refusal("--model=hf", *place)


def test_help_is_ours_or_the_harnesss(call: Call) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    ours, theirs = call("lm-eval", "--help"), call("lm-eval", "run", "--help")

    assert (ours.code, theirs.code, call("lm-eval").code) == (0, 0, 2)
    assert "posterior=RUN" in ours.out
    assert "--gen_kwargs" in theirs.out
    assert "--gen_kwargs" not in ours.out


def test_every_model_argument_is_told() -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from varlora.integrations.lm_eval import PosteriorLM

    told = " ".join(MODEL_ARGUMENTS)
    besides = ("options", "softmax_dtype", "device")
    taken = [name for name in inspect.signature(PosteriorLM).parameters if name not in besides]
    assert [name for name in taken if name not in told] == []


@pytest.mark.parametrize(
    ("given", "handed"),
    [
        ("--tasks t", "run --model varlora --tasks t"),
        ("run --tasks t", "run --model varlora --tasks t"),
        ("--model varlora --tasks t", "run --model varlora --model varlora --tasks t"),
        ("-M varlora", "run --model varlora -M varlora"),
        ("run --help", "run --help"),
        ("ls tasks", "ls tasks"),
        ("validate --tasks t", "validate --tasks t"),
    ],
)
def test_what_the_harness_reads(given: str, handed: str) -> None:
    command, words = lm_eval._for_the_harness(given.split())

    assert [command, *words] == handed.split()


def test_without_the_harness(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "varlora.integrations.lm_eval", raising=False)

    refused = call("lm-eval", "--tasks", "films")

    assert (refused.code, "pip install 'varlora[lm-eval]'" in refused.err) == (1, True)


def test_the_harness_is_imported_by_nobody_else() -> None:
    program = (
        "import sys, varlora; from varlora.cli import main; code = main(['lm-eval', '--help']);"
        "sys.exit(code or any(name.split('.')[0] == 'lm_eval' for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (found.returncode, found.stderr) == (0, "")
