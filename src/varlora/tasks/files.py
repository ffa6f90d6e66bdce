"""Rows out of a file: JSONL, a JSON array, CSV, TSV or Parquet, each also gzipped.

What a file holds is told by its first bytes, and by its name where those are plain text. Any other kind is named in
the error, with the kinds that are read. Nothing is guessed about values: a CSV file's cells are text, and become
something else only in the columns that varlora knows (`label`, `answer`, `choices`, `messages`, `tools`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from varlora.io.files import open_regular
from varlora.tasks.columns import rename_columns
from varlora.tasks.rows import Records

READ = "JSONL (one JSON object a line), a JSON array of objects, CSV, TSV or Parquet, gzipped or not"
LARGEST = 4 * 1024**3
"""Most bytes that are read from one file, unpacked."""
_OTHERS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a ZIP archive or an Excel file",
    b"ARROW1": "an Arrow file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"Obj\x01": "an Avro file",
    b"\x80\x04": "a pickle",
}
"""Kinds of file that are not read, by their first bytes."""
_DELIMITERS: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
_LARGEST_CELL = (1 << 31) - 1
"""Python's csv takes 131,072 characters unless it is told; a C long holds this many everywhere."""
_TELLING = 8
"""Bytes that tell what a file holds."""
_BLOCK = 2**20
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")


def read_records(
    file: str | Path,
    *,
    labelled: bool = True,
    once: bool = False,
    columns: Mapping[str, str] | None = None,
    either: bool = False,
) -> Records:
    """Read a file's rows.

    Args:
        file: The file; "-" is standard input.
        labelled: Whether the records' answers are read (see `Records`).
        once: Whether it is read this once, so that a pipe or standard input will do. A training's rows are read again
            when it is evaluated or resumed.
        columns: The file's columns by our names, e.g. {"text": "sentence"}; those not named have our names.
        either: Accept a file that has our name in place of such a column.

    Raises:
        ValueError: For a file of another kind, an empty one, or a row that does not read (bytes that are not UTF-8,
            invalid JSON, a blank line, half a character, a key that occurs twice, too many cells), or that lacks a
            column of `columns`; each names the file and the line or row.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "films.csv")
        >>> _ = file.write_text('text,label\\n"a fine, long film",1\\n', encoding="utf-8")
        >>> read_records(file).rows
        [{'text': 'a fine, long film', 'label': 1}]
    """
    where = _name(file)
    with _opened(file, where, once=once) as stream:
        content = _unpacked(_bounded(stream, where), where)
    return _all_records(content, where, labelled=labelled, columns=columns or {}, either=either)


def stream_records(
    file: str | Path,
    size: int,
    *,
    labelled: bool = True,
    columns: Mapping[str, str] | None = None,
    either: bool = False,
) -> Iterator[Records]:
    """Read a file's rows part by part: of JSONL that is not gzipped no more than a part is held at a time.

    Standard input and a pipe give what has arrived, so that a row need not wait for others.

    Args:
        file: As of `read_records`; it is read once.
        size: Most rows in a part.
        labelled, columns, either: As of `read_records`.

    Raises:
        ValueError: As `read_records`, when the row is reached.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "films.jsonl")
        >>> _ = file.write_text('{"text": "one"}\\n{"text": "two"}\\n{"text": "three"}\\n', encoding="utf-8")
        >>> [(part.first, [row["text"] for row in part.rows]) for part in stream_records(file, 2)]
        [(0, ['one', 'two']), (2, ['three'])]
    """
    where = _name(file)
    with _opened(file, where, once=True) as stream:
        start = b""
        while len(start.lstrip()) < _TELLING and (block := stream.read1(_BLOCK)):
            start += block
        if _is_json_lines(start, where):
            for first, rows in _streamed_lines(start, stream, where, size):
                part = Records(where=where, rows=rows, labelled=labelled, first=first)
                yield rename_columns(part, columns or {}, either=either)
            return
        content = _unpacked(start + _bounded(stream, where), where)
    named = _all_records(content, where, labelled=labelled, columns=columns or {}, either=either)
    for first in range(0, len(named.rows), size):
        given = None if named.as_given is None else named.as_given[first : first + size]
        yield replace(named, rows=named.rows[first : first + size], as_given=given, first=first)


def _streamed_lines(start: bytes, stream: Any, where: str, size: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Lines of JSONL, so many at most, and how many there are before them."""
    first, waiting = 0, start.removeprefix(b"\xef\xbb\xbf")
    while True:
        *lines, waiting = waiting.split(b"\n")
        for at in range(0, len(lines), size):
            rows = [_line(line, first + n, where) for n, line in enumerate(lines[at : at + size])]
            yield first, rows
            first += len(rows)
        if len(waiting) > LARGEST:
            raise ValueError(f"{where}, line {first + 1} holds more than {LARGEST // 1024**3} GiB")
        block = stream.read1(_BLOCK)
        if not block:
            break
        waiting += block
    if waiting:
        yield first, [_line(waiting, first, where)]


def reads_once(file: str | Path) -> bool:
    """Whether a file is standard input or a pipe, which can be read once only."""
    return str(file) == "-" or Path(file).is_fifo()


def _name(file: str | Path) -> str:
    return "standard input" if str(file) == "-" else str(file)


def _is_json_lines(start: bytes, where: str) -> bool:
    """Whether a file that begins so is JSONL; one without a row is left to `_records`."""
    if any(start.startswith(kind) for kind in (*_OTHERS, b"PAR1", b"\x1f\x8b")):
        return False
    content = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return bool(content) and not content.startswith(b"[") and Path(where).suffix.lower() not in _DELIMITERS


def _all_records(content: bytes, where: str, *, labelled: bool, columns: Mapping[str, str], either: bool) -> Records:
    """The rows under our names, their cells of the types that varlora knows."""
    records, is_text = _records(content, where)
    named = rename_columns(replace(records, labelled=labelled), columns, either=either)
    return replace(named, rows=_typed([dict(row) for row in named.rows], where)) if is_text else named


def _records(content: bytes, where: str) -> tuple[Records, bool]:
    """The rows, and whether their cells are text, whatever they mean."""
    kind = next((kind for start, kind in _OTHERS.items() if content.startswith(start)), None)
    if kind is not None:
        raise ValueError(f"{where} is {kind}; what is read is {READ}")
    if content.startswith(b"PAR1"):
        return Records(where=where, rows=_parquet(content, where), unit="row"), False
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise ValueError(f"{where} is empty: it holds no record")
    suffix = Path(where.removesuffix(".gz")).suffix.lower()
    if suffix in _DELIMITERS:
        return Records(where=where, rows=list(_table(content, where, _DELIMITERS[suffix])), unit="row"), True
    if content.lstrip().startswith(b"["):
        return Records(where=where, rows=_array(content, where), unit="record"), False
    lines = content.removesuffix(b"\n").split(b"\n")
    return Records(where=where, rows=[_line(line, n, where) for n, line in enumerate(lines)]), False


@contextmanager
def _opened(file: str | Path, where: str, *, once: bool) -> Iterator[Any]:
    """A file, a pipe or standard input, open to be read."""
    path = Path(file)
    if str(file) != "-":
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give a file: {READ}")
        if not path.is_fifo() and not path.is_file():
            raise ValueError(f"{path} is a device or a socket; give a file: {READ}")
    if reads_once(file) and not once:
        raise ValueError(f"{where} can be read only once, and a run's rows are read again later; write them to a file")
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with path.open("rb") if reads_once(file) else open_regular(path) as stream:
        yield stream


def _unpacked(content: bytes, where: str) -> bytes:
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as unpacked:
            return _bounded(unpacked, where)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: the gzip file is damaged ({error}); copy it again from its source") from error


def _bounded(stream: BinaryIO, where: str) -> bytes:
    content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{where} holds more than {LARGEST // 1024**3} GiB; give fewer rows")
    return content


def _line(line: bytes, index: int, where: str) -> dict[str, Any]:
    """One line of JSONL."""
    at = f"{where}, line {index + 1}"
    if not line.strip():
        raise ValueError(f"{at} is blank; remove the line")
    try:
        return _object(_json(_text(line, at), at), at)
    except ValueError as error:
        if index == 0 and line.strip() == b"{":
            raise ValueError(f"{where} is a JSON object written over several lines; what is read is {READ}") from error
        raise


def _array(content: bytes, where: str) -> list[dict[str, Any]]:
    value = _json(_text(content, where), where)
    if not value:
        raise ValueError(f"{where} is empty: it holds no record")
    return [_object(item, f"{where}, record {n}") for n, item in enumerate(value, 1)]


def _text(content: bytes, at: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{at}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from error


def _json(text: str, at: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise ValueError(f"{at}: not valid JSON: {error.msg} at {place}") from error
    except RecursionError as error:
        raise ValueError(f"{at}: not valid JSON: brackets within brackets, too many of them") from error
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from error


def _object(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{at}: got a JSON {type(value).__name__}; what is read is {READ}")
    for field, content in value.items():
        for text in _strings([field, content]):
            if half := re.search("[\ud800-\udfff]", text):
                raise ValueError(
                    f"{at}, field {field.encode('utf-8', 'replace').decode()!r}: character {half.start()} is the lone "
                    f"surrogate \\u{ord(half[0]):04x}, half a character, as when a text is cut within an emoji; remove "
                    "it, or write the whole character"
                )
    return value


def _strings(value: Any) -> Iterator[str]:
    """All text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings([key, item])
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise ValueError(f"the keys {twice} occur twice in one object")
    return value


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _table(content: bytes, where: str, delimiter: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV or TSV file, as text."""
    lines = content.split(b"\n")
    text = "\n".join(_text(line, f"{where}, line {n}") for n, line in enumerate(lines, 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(_LARGEST_CELL)
    try:
        header = next(reader)
        if len(set(header)) < len(header) or "" in header:
            raise ValueError(f"{where}: the header must name each column, and each otherwise, got {header}")
        if len(header) == 1 and re.search("[;\t|,]", header[0]):
            raise ValueError(
                f"{where}: the header is one column, {header[0]!r}; the cells of a .csv file are parted by commas, "
                "those of a .tsv file by tabs"
            )
        for cells in reader:
            if not cells:
                raise ValueError(f"{where}, line {reader.line_num} is blank; remove the line")
            if len(cells) != len(header):
                raise ValueError(
                    f"{where}, line {reader.line_num}: {len(cells)} cells in a table of {len(header)} columns; put a "
                    "cell that holds the delimiter or a line break into double quotes"
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{where}, line {reader.line_num}: not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _typed(rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Cells that are more than text: lists as JSON, integer labels, indices and true or false as answers."""
    if not rows:
        raise ValueError(f"{where} is empty: it holds no record")
    integers = all(_WHOLE.fullmatch(row.get("label", "")) for row in rows)
    for n, row in enumerate(rows, 1):
        for column in ("choices", "messages", "tools"):
            if row.get(column):
                row[column] = _json(row[column], f"{where}, row {n}, field {column!r}")
        if integers:
            row["label"] = int(row["label"])
        if "answer" in row and "choices" in row:
            row["answer"] = _choice(row, f"{where}, row {n}")
        elif "answer" in row and "passage" in row:
            row["answer"] = {"true": True, "false": False}.get(row["answer"].lower(), row["answer"])
    return rows


def _choice(row: Mapping[str, Any], at: str) -> str | int:
    """An answer to a question with choices, which in a table is text: a number is an index, if it is no choice."""
    answer: str = row["answer"]
    if not _WHOLE.fullmatch(answer):
        return answer
    choices = row["choices"]
    if isinstance(choices, list) and answer in choices and choices.index(answer) != int(answer):
        if int(answer) not in range(len(choices)):
            return answer
        raise ValueError(f"{at}, field 'answer': {answer!r} is one choice's index and another's text; give its letter")
    return int(answer)


def _parquet(content: bytes, where: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from varlora.io.parquet_files import check_values

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        parts = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        if sum(part.total_byte_size for part in parts) > LARGEST:
            raise ValueError(f"it holds more than {LARGEST // 1024**3} GiB; give fewer rows")
        check_values(file.metadata, len(content))
        rows: list[dict[str, Any]] = file.read().to_pylist()
    except (ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{where}: the Parquet file does not read: {error}") from error
    if not rows:
        raise ValueError(f"{where} is empty: it holds no record")
    return rows
