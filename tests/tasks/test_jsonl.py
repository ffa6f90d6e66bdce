"""Files: what is read, and what is refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from varlora.tasks import load_jsonl
from varlora.tasks.files import read_records
from varlora.tasks.jsonl import read_label_names

ROWS = [{"text": f"film {i}", "label": "good" if i % 4 else "bad"} for i in range(40)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_validation_is_cut_from_train_in_proportion_and_noted(tmp_path: Path) -> None:
    files = {"train": write(tmp_path / "train.jsonl", ROWS)}

    task = load_jsonl(files, validation_size=8, seed=3)
    again = load_jsonl(files, validation_size=8, seed=3)

    train, validation = task.rows("train"), task.rows("validation")
    assert sorted([*train["prompt"], *validation["prompt"]]) == sorted(
        f"{row['text']}\nLabels: bad, good\nLabel:" for row in ROWS
    )
    assert list(validation["label"]).count(0) == 2, "a quarter of the rows are bad, so 2 of 8"
    assert list(again.rows("validation")["id"]) == list(validation["id"])
    assert task.notes == ("validation: 8 rows cut from the 40 of train, seed 3, each class in proportion",)


def test_a_given_validation_file_is_kept_and_an_overlap_noted(tmp_path: Path) -> None:
    files = {
        "train": write(tmp_path / "train.jsonl", ROWS),
        "validation": write(tmp_path / "val.jsonl", [{"text": "  FILM 3 ", "label": "good"}, ROWS[4]]),
        "test": write(tmp_path / "test.jsonl", [{"text": "another", "label": "bad"}]),
    }

    task = load_jsonl(files)

    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 40, "validation": 2, "test": 1}
    assert task.notes == ("validation: 2 of 2 prompts are in train too (kept)",)


def test_byte_order_mark_and_missing_last_newline_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "bom.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "caf\xc3\xa9", "label": 1}\r\n{"text": "b", "label": 0}')

    assert [row["text"] for row in read_records(file).rows] == ["café", "b"]


BAD = {
    "empty": (b"", r"data.jsonl is empty"),
    "only a newline": (b"\n", r"data.jsonl is empty"),
    "blank line": (b'{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n', r"data.jsonl, line 2 is blank"),
    "invalid JSON": (b'{"text": "a", "label": 1}\n{"text": "b"\n', r"line 2: not valid JSON: .* at column \d+"),
    "not UTF-8": (b'{"text": "caf\xe9", "label": 1}\n', r"line 1: not UTF-8 \(.* at byte 13\); save the file as UTF-8"),
    "not an object": (b"17\n", r"line 1: got a JSON int; what is read is JSONL \(one JSON object a line\), a JSON arr"),
    "key twice": (b'{"text": "a", "text": "b", "label": 1}\n', r"line 1: the keys \['text'\] occur twice"),
    "NaN": (b'{"text": "a", "label": NaN}\n', r"line 1: NaN is not JSON"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_a_file_that_does_not_read_is_named_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)

    with pytest.raises(ValueError, match=message):
        load_jsonl({"train": file})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere.jsonl"):
        load_jsonl({"train": tmp_path / "nowhere.jsonl"})
    with pytest.raises(ValueError, match="no data file was given"):
        load_jsonl({})


def test_too_few_rows_for_a_validation_split(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", ROWS[:2])

    with pytest.raises(ValueError, match="no validation split can be cut from train: cannot take 1 of 2 rows"):
        load_jsonl({"train": file}, validation_size=1)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1.5"):
        load_jsonl({"train": file}, validation_size=1.5)


def test_label_names_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('["good", "bad"]', encoding="utf-8")
    (tmp_path / "names.txt").write_text("good\nbad\n", encoding="utf-8")
    (tmp_path / "wrong.json").write_text('{"good": 0}', encoding="utf-8")
    train = write(tmp_path / "train.jsonl", ROWS)

    assert read_label_names(tmp_path / "names.txt") == ["good", "bad"]
    assert load_jsonl({"train": train}, label_names=tmp_path / "names.json").answers == ("good", "bad")
    with pytest.raises(ValueError, match=r"wrong.json: label names must be a JSON list of strings"):
        load_jsonl({"train": train}, label_names=tmp_path / "wrong.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["good"]', r"two or more different label names, got \('good',\)"),
        ("good\ngood\n", r"two or more different label names, got \('good', 'good'\)"),
        ('["good", " "]', "label names must be strings that are not empty"),
        ("", r"two or more different label names, got \(\)"),
    ],
)
def test_label_names_that_are_no_classes_are_refused_with_their_file(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "names").write_text(content, encoding="utf-8")

    with pytest.raises(ValueError, match=rf"{tmp_path}/names: .*{message}"):
        read_label_names(tmp_path / "names")
