"""Content hashes: what is read decides, and where it lies does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from varlora.compare import content
from varlora.compare.content import DATA_FILES, MODEL_FILES, Generated, contents_of, digest_of
from varlora.demo.data import model_folder
from varlora.runs.config import RunConfig


def test_a_folder_is_known_by_the_names_and_content_of_its_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        (folder / "deep").mkdir(parents=True)
        (folder / "train.jsonl").write_text("{}\n")
        (folder / "deep" / "more.json").write_text("1")
    (second / "README.md").write_text("of no account")
    (second / ".hidden").mkdir()
    (second / ".hidden" / "x.json").write_text("of no account")
    same = digest_of(first, DATA_FILES)
    assert digest_of(second, DATA_FILES) == same

    (second / "deep" / "more.json").write_text("2")
    assert digest_of(second, DATA_FILES) != same
    (second / "deep" / "more.json").write_text("1")
    assert digest_of(second, DATA_FILES) == same
    (second / "train.jsonl").rename(second / "test.jsonl")
    assert digest_of(second, DATA_FILES) != same
    with pytest.raises(ValueError, match="no file or folder"):
        digest_of(tmp_path / "c", DATA_FILES)


@pytest.mark.parametrize("place", [0, 10_000, 99_999])
def test_a_large_file_is_known_by_samples_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setattr(content, "READ_WHOLE", 1000)
    monkeypatch.setattr(content, "BLOCK", 500)
    monkeypatch.setattr(content, "BLOCKS", 256)
    file = tmp_path / "model.safetensors"
    values = bytearray(100_000)
    file.write_bytes(values)
    before = digest_of(file, MODEL_FILES)
    values[place] = 1
    file.write_bytes(values)
    os.utime(file, ns=(1, 1))
    assert digest_of(file, MODEL_FILES) != before


def test_a_run_reads_its_model_and_its_data_by_content(tmp_path: Path) -> None:
    shutil.copytree(model_folder(), tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": "b"}\n')
    given = {"train_file": str(rows), "output_dir": str(tmp_path)}
    here = RunConfig(model_name_or_path=str(tmp_path / "model"), **given)
    there = RunConfig(model_name_or_path="embedded", **given)
    assert contents_of(here) == contents_of(there)
    assert contents_of(here).keys() == {"model_name_or_path", "train_file"}
    assert contents_of(RunConfig(model_name_or_path="some/name", task="arc_easy", output_dir="x")) == {}
    (tmp_path / "model" / "config.json").write_text("{}")
    assert contents_of(here)["model_name_or_path"] != contents_of(there)["model_name_or_path"]


def test_generated_rows_are_written_once_and_mended(tmp_path: Path) -> None:
    task = Generated(train=6, validation=4, test=3)
    files = {name: Path(file) for name, file in task.files(tmp_path).items()}
    assert files.keys() == {"train_file", "validation_file", "test_file"}
    task.write(tmp_path)
    assert [len(file.read_text().splitlines()) for file in files.values()] == [6, 4, 3]
    stamp = files["train_file"].stat().st_mtime_ns
    task.write(tmp_path)
    assert files["train_file"].stat().st_mtime_ns == stamp
    text = files["test_file"].read_text()
    files["test_file"].write_text("changed")
    task.write(tmp_path)
    assert files["test_file"].read_text() == text


def test_generated_tasks_differ_by_seed_and_size(tmp_path: Path) -> None:
    tasks = [Generated(train=6, test=3), Generated(train=6, test=3, seed=1), Generated(train=7, test=3)]
    assert len({task.digest for task in tasks}) == 3
    assert len({task.files(tmp_path)["train_file"] for task in tasks}) == 3
    assert Generated(train=6, test=3).digest == tasks[0].digest
