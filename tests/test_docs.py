"""The README and the docs, held to what they say: snippets run, commands and `make` targets exist, links resolve."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from varlora.demo.data import model_folder, write_task
from varlora.methods import METHODS
from varlora.metrics import METRICS
from varlora.tasks.prompts import LETTERS, choice_prompt

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
FENCE = re.compile(r"^```(\w*)( run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    line: int
    text: str
    runs: bool


def blocks(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    return [
        Block(m[1], content.count("\n", 0, m.start()) + 1, m[3], m[1] == "python" or m[2] is not None)
        for m in FENCE.finditer(content)
    ]


def name_of(page: object) -> str:
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)


def commands(first_word: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash":
                for line in block.text.replace("\\\n", " ").splitlines():
                    if line.split("#")[0].split()[:1] == [first_word]:
                        yield page, line


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the snippets name."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(model_folder(), folder / "my-model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder())
    tokenizer.save_pretrained(folder / "my-encoder")
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder / "my-encoder")

    files = write_task(folder, seed=0, train=32, validation=24, test=24)
    rows = [json.loads(line) for line in files["train"].read_text(encoding="utf-8").splitlines()]
    prompts = [choice_prompt(row["question"], row["choices"]) for row in rows]
    answers = [f" {LETTERS[row['answer']]}" for row in rows]
    others = [f" {LETTERS[(row['answer'] + 1) % 4]}" for row in rows]
    columns = {
        "completions": [{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)],
        "preferences": [
            {"prompt": p, "chosen": a, "rejected": b} for p, a, b in zip(prompts, answers, others, strict=True)
        ],
        "reviews": [
            {"text": f"{row['choices'][0]} or {row['choices'][1]}", "label": ("bad", "good")[row["answer"] % 2]}
            for row in rows
        ],
    }
    for name, records in columns.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _forgets_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is gone after it."""
    monkeypatch.setattr(METRICS, "_added", dict(METRICS.imported))


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page))], ids=name_of)
def test_snippets_run(
    page: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    shutil.copytree(workspace, here)
    monkeypatch.chdir(here)
    monkeypatch.setattr(METHODS, "_added", {})  # what a snippet registers is gone after it
    module = ModuleType("snippet")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # a dataclass looks for the module that it stands in
    for block in blocks(page):
        if block.runs and block.language == "bash":
            for line in block.text.splitlines():
                assert _exit_code(shlex.split(line, comments=True)[1:]) == 0
        elif block.runs:
            # Blank lines in front, so that a traceback gives the line of the page.
            exec(compile("\n" * block.line + block.text, name_of(page), "exec"), module.__dict__)


@pytest.fixture(scope="module")
def options_of() -> Callable[..., set[str]]:
    """The options that a command's help shows; each command is asked once."""

    @functools.cache
    def shown(*command: str) -> set[str]:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as told:
            patch.setenv("COLUMNS", "250")
            patch.setenv("NO_COLOR", "1")
            assert _exit_code([*command, "--help"]) == 0
        return set(re.findall(r"--[\w-]+", told.getvalue()))

    return shown


@pytest.mark.parametrize(("page", "line"), list(commands("varlora")), ids=name_of)
def test_commands_have_the_options_they_are_shown_with(
    page: Path, line: str, options_of: Callable[..., set[str]]
) -> None:
    words = shlex.split(line, comments=True)
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    command = words[1:2] if len(words) > 1 and not words[1].startswith("-") else []
    assert set(options) <= options_of(*command)


def _exit_code(arguments: list[str]) -> int:
    from varlora.cli import main

    try:
        return int(main(arguments) or 0)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(("page", "line"), list(commands("make")), ids=name_of)
def test_make_has_the_targets(page: Path, line: str) -> None:
    targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert line.split("#")[0].split()[1] in targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file) if file else page
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_tests_that_are_named_are_there(page: Path) -> None:
    """As `tests/x.py::test_y`, or `::test_y` behind one of the same file."""
    file, missing = "", []
    for named, test in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", page.read_text(encoding="utf-8")):
        file = named or file
        if not (ROOT / file).is_file() or f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8"):
            missing.append(f"{file}::{test}")
    assert not missing


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
