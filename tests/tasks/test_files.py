"""Files of every kind that is read, and by name of kinds that are not."""

from __future__ import annotations

import csv
import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varlora.tasks import load_jsonl, load_more
from varlora.tasks.files import read_records, stream_records

ROWS: list[dict[str, Any]] = [
    {"id": "007", "text": 'a "fine", long\nfilm', "label": "NA"},
    {"id": "008", "text": "null", "label": "None"},
]
CSV = 'id,text,label\r\n007,"a ""fine"", long\nfilm",NA\r\n008,null,None\r\n'


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue().to_pybytes()


READ: dict[str, tuple[str, bytes]] = {
    "JSONL": ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
    "JSON array": ("a.json", json.dumps(ROWS, indent=1).encode()),
    "CSV": ("a.csv", CSV.encode()),
    "CSV with a byte-order mark": ("a.CSV", b"\xef\xbb\xbf" + CSV.encode()),
    "TSV": (
        "a.tsv",
        CSV.replace('"a ""fine"", long', "@").replace(",", "\t").replace("@", '"a ""fine"", long').encode(),
    ),
    "Parquet": ("a.parquet", parquet(ROWS)),
    "Parquet by another name": ("a.bin", parquet(ROWS)),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "content"), READ.values(), ids=READ.keys())
def test_rows_are_read_as_they_were_written(tmp_path: Path, name: str, content: bytes, packed: bool) -> None:
    """In a table, too, "NA" is a class, 007 an id and "null" a text."""
    file = tmp_path / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(content) if packed else content)

    records = read_records(file)

    assert records.rows == ROWS
    assert records.where == str(file)


def test_a_tables_cells_become_what_its_columns_hold(tmp_path: Path) -> None:
    def read(text: str) -> list[Any]:
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        return list(read_records(tmp_path / "t.csv").rows)

    assert [row["label"] for row in read("text,label\na,10\nb,-1\n")] == [10, -1]
    assert [row["label"] for row in read("text,label\na,10\nb,01\n")] == ["10", "01"], "01 is no number's spelling"
    choices = 'question,choices,answer\nq,"[""cat"", ""dog""]",{}\n'
    assert read(choices.format(1))[0] == {"question": "q", "choices": ["cat", "dog"], "answer": 1}
    assert read(choices.format("B"))[0]["answer"] == "B"
    assert read('question,choices,answer\nq,"[""4"", ""5""]",5\n')[0]["answer"] == "5"
    assert [r["answer"] for r in read("passage,question,answer\np,q,true\np,q,False\n")] == [True, False]
    with pytest.raises(ValueError, match=r"t.csv, row 1, field 'answer': '1' is one choice's index and another's text"):
        read('question,choices,answer\nq,"[""1"", ""2""]",1\n')
    with pytest.raises(ValueError, match=r"t.csv, row 1, field 'choices': not valid JSON"):
        read("question,choices,answer\nq,cat|dog,1\n")


BAD: dict[str, tuple[str, bytes, str]] = {
    "lone surrogate": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": "ab\\ud83d"}\n',
        r"line 2, field 'text': character 2 is .*\\ud83d",
    ),
    "lone surrogate within": (
        "a.jsonl",
        b'{"messages": [{"content": "\\udc00"}]}\n',
        r"line 1, field 'messages': charac",
    ),
    "lone surrogate in a key": ("a.jsonl", b'{"\\udc00": 1}\n', r"line 1, field '\?': character 0 is the lone surr"),
    "lone surrogate in an array": ("a.json", b'[{"text": "\\udc00"}]', r"a.json, record 1, field 'text': character 0"),
    "one object": (
        "a.json",
        b'{\n "text": ["a"]\n}\n',
        r"a.json is a JSON object written over several lines; what is read",
    ),
    "array of others": ("a.json", b"[1, 2]", r"a.json, record 1: got a JSON int; what is read is JSONL"),
    "broken array": ("a.json", b'[\n{"text": "a"},\n{"text": }\n]', r"a.json: not valid JSON: .* at line 3, column 10"),
    "empty array": ("a.json", b"[]", r"a.json is empty"),
    "many brackets": ("a.jsonl", b"{" + b'"a":{' * 100_000, r"line 1: not valid JSON: brackets within brackets"),
    "many brackets, array": ("a.json", b"[" * 100_000, r"a.json: not valid JSON: brackets within brackets"),
    "Excel": ("a.csv", b"PK\x03\x04...", r"a.csv is a ZIP archive or an Excel file; what is read is JSONL"),
    "UTF-16": ("a.csv", "text,label\n".encode("utf-16"), r"a.csv is text in UTF-16"),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(b"{}" * 99)[:-9], r"a.jsonl.gz: the gzip file is damaged"),
    "damaged Parquet": ("a.parquet", b"PAR1" + bytes(40) + b"PAR1", r"a.parquet: the Parquet file does not read"),
    "Parquet without rows": ("a.parquet", parquet([]), r"a.parquet is empty"),
    "column twice": ("a.csv", b"text,text\na,b\n", r"the header must name each column"),
    "semicolons": (
        "a.csv",
        b"text;label\na;b\n",
        r"one column, 'text;label'; the cells of a .csv file are parted by comm",
    ),
    "ragged": ("a.csv", b'text,label\n"a\nb",c\na,b,c\n', r"a.csv, line 4: 3 cells in a table of 2 columns"),
    "open quote": ("a.csv", b'text,label\n"a,b\n', r"a.csv, line 2: not valid CSV: unexpected end of data"),
    "CSV not UTF-8": ("a.csv", b"text,label\na,b\ncaf\xe9,c\n", r"a.csv, line 3: not UTF-8"),
    "header alone": ("a.csv", b"text,label\n", r"a.csv is empty"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD.keys())
def test_what_does_not_read_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / name)


def test_a_pipe_is_read_once_and_a_device_never(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"text": "a fine film"}\n',))
    writer.start()
    task = load_more(pipe, kind="label", answers=("bad", "good"), labelled=False)
    writer.join()

    assert task.rows("test")["text"] == ["a fine film"]
    for file, message in ((pipe, "pipe can be read only once"), ("-", "standard input can be read only once")):
        with pytest.raises(ValueError, match=message):
            load_jsonl({"train": file})
    with pytest.raises(ValueError, match="/dev/zero is a device or a socket"):
        read_records("/dev/zero", once=True)
    with pytest.raises(ValueError, match="is a folder; give a file"):
        read_records(tmp_path)


def test_more_than_can_be_held_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varlora.tasks.files.LARGEST", 2**20)
    file = tmp_path / "bomb.gz"
    file.write_bytes(gzip.compress(bytes(2**21)))
    table = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": ["a" * 2**21]}), table, use_dictionary=False)

    for bomb in (file, table):
        with pytest.raises(ValueError, match=r"bomb.*holds more than"):
            read_records(bomb)


def test_one_file_is_the_training_rows(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("text,label\n" + "".join(f"film {n},{n % 2}\n" for n in range(20)), encoding="utf-8")

    assert load_jsonl(str(file)).rows("train")["prompt"] == load_jsonl({"train": file}).rows("train")["prompt"]


def test_a_cell_may_be_a_book_and_pythons_limit_is_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    file = tmp_path / "books.csv"
    file.write_text(f"text,label\n{'word ' * 40_000},1\n", encoding="utf-8")
    assert len(read_records(file).rows[0]["text"]) == 200_000
    assert csv.field_size_limit() == before


def test_a_blank_line_of_a_table_is_named(tmp_path: Path) -> None:
    file = tmp_path / "films.csv"
    file.write_text("text,label\nfine,1\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"films\.csv, line 3 is blank; remove the line"):
        read_records(file)


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_stream_gives_what_reading_all_does(tmp_path: Path, end: bytes) -> None:
    lines = [b'{"text": "line %d"}' % n for n in range(7)]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + end)

    parts = list(stream_records(file, 3))

    assert [(part.first, len(part.rows)) for part in parts] == [(0, 3), (3, 3), (6, 1)]
    assert [row for part in parts for row in part.rows] == list(read_records(file).rows)


def test_kinds_that_must_be_held_whole_are_streamed_in_parts(tmp_path: Path) -> None:
    table, array = tmp_path / "rows.csv", tmp_path / "rows.json"
    table.write_text("text\n" + "".join(f"line {n}\n" for n in range(4)), encoding="utf-8")
    array.write_text('[{"text": "line 0"}, {"text": "line 1"}]', encoding="utf-8")
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "line 0"}\n'))

    assert [(part.first, len(part.rows), part.unit) for part in stream_records(table, 3)] == [
        (0, 3, "row"),
        (3, 1, "row"),
    ]
    assert [len(part.rows) for part in stream_records(array, 3)] == [2]
    assert [part.rows for part in stream_records(packed, 3)] == [[{"text": "line 0"}]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it holds no record"),
        (b" \n \n", "is empty: it holds no record"),
        (b'{"text": "a"}\n' * 5 + b"\n", "line 6 is blank"),
        (b'{"text": "a"}\n' * 5 + b"nothing", "line 6: not valid JSON"),
        (b"PK\x03\x04" + b"-" * 9, "is a ZIP archive"),
    ],
)
def test_a_stream_refuses_what_reading_all_does(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(stream_records(file, 2))
    with pytest.raises(ValueError, match=message):
        read_records(file)


def test_a_pipe_gives_what_has_arrived(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = stream_records(pipe, 100)
    found: list[Any] = []
    asks = threading.Thread(target=lambda: found.append(next(reader)))
    asks.start()
    with pipe.open("wb", buffering=0) as writer:
        writer.write(b'{"text": "first"}\n{"te')
        asks.join(10)
        assert [part.rows for part in found] == [[{"text": "first"}]]
        writer.write(b'xt": "second"}\n')
    assert [part.rows for part in reader] == [[{"text": "second"}]]
