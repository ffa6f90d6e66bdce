"""Files whose columns have other names: each kind of file, rows of either naming, and rows as they were given."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varlora.tasks import load_jsonl
from varlora.tasks.files import read_records

ROWS = [{"sentence": f"a film {i}", "polarity": i % 2, "text": "<p>", "id": f"f{i}"} for i in range(12)]
COLUMNS = {"text": "sentence", "label": "polarity"}


def written(folder: Path, kind: str) -> Path:
    """The rows as a file."""
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    elif kind == "csv":
        file.write_text("\n".join([",".join(ROWS[0]), *(",".join(map(str, row.values())) for row in ROWS)]))
    elif kind == "json":
        file.write_text(json.dumps(ROWS))
    else:
        file.write_text("\n".join(map(json.dumps, ROWS)))
    return file


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_columns_of_theirs_are_read_under_our_names(tmp_path: Path, kind: str) -> None:
    file = written(tmp_path, kind)

    task = load_jsonl({"test": file}, columns=COLUMNS, label_names=["0", "1"])

    assert task.rows("test")["text"] == [row["sentence"] for row in ROWS]
    assert task.rows("test")["label"] == [row["polarity"] for row in ROWS]  # of a table, too: integers by our name
    given = read_records(file, columns=COLUMNS).as_given
    assert given is not None
    assert [list(row) for row in given] == [list(row) for row in ROWS]


def test_what_is_missing_is_named_with_the_columns_there_are(tmp_path: Path) -> None:
    file = written(tmp_path, "csv")

    with pytest.raises(
        ValueError, match=r"rows.csv, row 1: no column 'sentnce', which .* it has sentence, polarity, text"
    ):
        read_records(file, columns={"text": "sentnce"})


def test_another_file_may_have_either_name_and_no_answers(tmp_path: Path) -> None:
    (tmp_path / "theirs.jsonl").write_text('{"sentence": "a film"}')
    (tmp_path / "ours.jsonl").write_text('{"text": "a film"}')
    (tmp_path / "none.jsonl").write_text('{"words": "a film"}')

    for name in ("theirs", "ours"):
        rows = read_records(tmp_path / f"{name}.jsonl", labelled=False, columns=COLUMNS, either=True).rows
        assert [dict(row) for row in rows] == [{"text": "a film"}]
    with pytest.raises(ValueError, match="no column 'sentence', which dataset_columns names; it has words"):
        read_records(tmp_path / "none.jsonl", labelled=False, columns=COLUMNS, either=True)
    with pytest.raises(ValueError, match="no column 'sentence'"):
        read_records(tmp_path / "ours.jsonl", labelled=False, columns=COLUMNS)
