"""The command line, called in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.workshop import TEST, VALIDATION, Outcome, Workshop, reviews, write_rows
from models import tiny_llama
from tiny_tokenizers import byte_bpe
from varlora.cli import main
from varlora.cli.console import err, out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Calls `varlora` with these words."""
    monkeypatch.setenv("COLUMNS", "200")  # for --help, whose console is made anew
    for console in (out, err):
        # A console keeps the COLUMNS that it was made under, and one of a dumb terminal is 80 wide unless both are set.
        monkeypatch.setattr(console, "_width", 200)
        monkeypatch.setattr(console, "_height", 50)

    def called(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        written = capsys.readouterr()
        return Outcome(code, written.out, " ".join(written.err.split()))

    return called


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The model and the rows."""
    folder = tmp_path_factory.mktemp("workshop")
    tokenizer = byte_bpe()
    tiny_llama(vocab_size=len(tokenizer), layers=1).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    write_rows(folder / "train.jsonl", reviews(24))
    write_rows(folder / "test.jsonl", reviews(9, first=100))
    return Workshop(folder)


@pytest.fixture(scope="session")
def run_folder(workshop: Workshop) -> Path:
    """A finished run with IVON."""
    folder = workshop.folder / "run"
    assert main(workshop.training(folder)) == 0
    return folder


@pytest.fixture(scope="session")
def graded(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with 60 validation rows that decided nothing, 45 test rows, and others."""
    folder = tmp_path_factory.mktemp("graded")
    files = {
        "validation_file": write_rows(folder / "validation.jsonl", VALIDATION),
        "test_file": write_rows(folder / "test.jsonl", TEST),
        "shift_file": write_rows(folder / "shift.jsonl", reviews(12, first=900)),
    }
    assert main(workshop.training(folder / "run", held_out="none", **files)) == 0
    return folder / "run"


@pytest.fixture
def run(graded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(graded, tmp_path / "run"))
