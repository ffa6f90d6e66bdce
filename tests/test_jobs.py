"""docs/jobs.md: its lines are as many as it says, ours do what they are said to, and MAPIE's run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from small_runs import config, films, finish_herds, herds, save_model, write_rows
from tiny_tokenizers import word_level
from varlora import Predictor
from varlora.cli import main
from varlora.runs.run import run

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "jobs.md").read_text(encoding="utf-8")
PACKAGES = ("varlora", "laplace-torch", "lm-polygraph", "MAPIE")


class Lines(NamedTuple):
    job: str
    package: str
    language: str
    text: str

    @property
    def count(self) -> int:
        return sum(bool(line.strip()) for line in self.text.splitlines())


def blocks() -> Iterator[Lines]:
    for job, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL):
        for found in re.findall(r"^\*\*([\w-]+)\*\*.*?^```(\w+)\n(.*?)^```$", body, re.MULTILINE | re.DOTALL):
            yield Lines(job, *found)


def lines_of(job: str, package: str) -> Lines:
    (found,) = [block for block in blocks() if (block.job, block.package) == (job, package)]
    return found


def test_the_table_counts_them() -> None:
    rows = re.findall(r"^\| \[(.+?)\]\(#.+?\) \| (.+) \|$", PAGE, re.MULTILINE)
    told = {(job.capitalize(), p): n for job, row in rows for p, n in zip(PACKAGES, row.split(" | "), strict=True)}
    counted = {(block.job, block.package): str(block.count) for block in blocks()}

    assert len(rows) == 5
    assert {key: n for key, n in told.items() if n != "–"} == counted


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of reviews, another of sums, and the files that the page names."""
    folder = tmp_path_factory.mktemp("jobs")
    model = save_model(folder / "model", layers=1)
    finish_herds(folder, model, output_dir=str(folder / "runs" / "reviews"))
    write_rows(folder / "test.jsonl", films(24, offset=3))
    write_rows(folder / "new.jsonl", [{"text": row["text"]} for row in herds(8, offset=100)])
    sums = [{"prompt": f"a {word} =", "completion": " a film"} for word in ("cat", "dog", "cow", "hen")]
    data = {name: write_rows(folder / f"{name}.jsonl", sums) for name in ("train_file", "validation_file", "test_file")}
    given = {"final_answer": "text", "max_steps": 3, "max_new_tokens": 4, "output_dir": str(folder / "runs" / "sums")}
    run(config(folder / "sums", model, **data, **given), progress=False)
    tokenizer = word_level(words=("fine", "dull", "film", "a", "cat", "dog", "cow", "hen"))
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "my-encoder")
    tokenizer.save_pretrained(folder / "my-encoder")
    return folder


@pytest.fixture(autouse=True)
def _there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def call(job: str) -> None:
    for line in lines_of(job, "varlora").text.splitlines():
        assert main(shlex.split(line)[1:]) == 0


def test_numbers_on_a_labelled_file(capsys: pytest.CaptureFixture[str]) -> None:
    call("Numbers on a labelled file")
    assert "Accuracy" in capsys.readouterr().out


def test_one_text() -> None:
    names: dict[str, Any] = {"Predictor": Predictor}
    exec(lines_of("One text", "varlora").text, names)
    assert names["answer"].label in ("negative", "positive")


def test_leave_rows_out(here: Path) -> None:
    call("Leave rows out, with a guarantee")
    answers = [json.loads(line) for line in (here / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 8
    assert all(isinstance(answer["answered"], bool) for answer in answers)


def test_mapies_lines_run() -> None:
    base = pytest.importorskip("sklearn.base")
    mapie = pytest.importorskip("mapie.classification")
    rows = {"text": np.array([row["text"] for row in herds(40)]), "label": np.arange(40) % 2}
    names: dict[str, Any] = {
        "np": np,
        "torch": torch,
        "ClassifierMixin": base.ClassifierMixin,
        "BaseEstimator": base.BaseEstimator,
        "SplitConformalClassifier": mapie.SplitConformalClassifier,
        "AutoModelForSequenceClassification": AutoModelForSequenceClassification,
        "AutoTokenizer": AutoTokenizer,
        "validation": rows,
        "new": rows,
    }
    exec(lines_of("Leave rows out, with a guarantee", "MAPIE").text, names)
    assert names["answered"].shape == (40,)


def test_a_generated_answer() -> None:
    names: dict[str, Any] = {"Predictor": Predictor}
    exec(lines_of("How sure of a generated answer", "varlora").text.replace("one + two", "a cat"), names)
    assert sum(names["answer"].answers.values()) == pytest.approx(1)
