"""Files that another hand may have written: only regular ones are read, and none larger than its kind can be.

A device never ends, a pipe that nobody writes to never begins, and a file of a terabyte may take no room on the disk.
All three may stand where a folder's file should, behind a link. So size and kind are asked of the open file before a
byte is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from types import UnionType
from typing import Any, BinaryIO, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

T = TypeVar("T")

MEBIBYTE = 1 << 20
LARGEST_JSON = 64 * MEBIBYTE
"""Facts and metrics of a run, and the manifest of a posterior, are a thousandth of it."""

MOST_DIGITS = 300
"""Of a whole number: with more it is no floating-point number."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, or one that a link leads to, open to be read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a folder, a pipe, a device or a socket, or most of it is a hole; the message names it.

    Example:
        >>> open_regular("/dev/null")
        Traceback (most recent call last):
        ValueError: /dev/null is a device, not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    status = os.fstat(descriptor)
    held = getattr(status, "st_blocks", 0) * 512
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ValueError(f"{os.fspath(path)} is {_kind(status.st_mode)}, not a regular file.")
    if status.st_size > LARGEST_JSON and 0 < held < status.st_size // 64:
        os.close(descriptor)
        raise ValueError(f"{os.fspath(path)} has {status.st_size:,} bytes, of which only {held:,} are on the disk.")
    return open(descriptor, "rb")


def sha256_of(stream: BinaryIO) -> str:
    """SHA-256 of what is left of a stream, in hexadecimal; it is read in blocks.

    Example:
        >>> import io
        >>> sha256_of(io.BytesIO(b"abc"))[:8]
        'ba7816bf'
    """
    digest = hashlib.sha256()
    while block := stream.read(MEBIBYTE):
        digest.update(block)
    return digest.hexdigest()


def read_bytes(path: str | os.PathLike[str], *, largest: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file, or a link to it.
        largest: the most bytes that it may have; None: any number.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no regular file (as of `open_regular`), or larger; the message names it.

    Example:
        >>> read_bytes(__file__, largest=10)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ...files.py has ... bytes, and a file of its kind at most 10.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if largest is not None and size > largest:
            raise ValueError(f"{os.fspath(path)} has {size:,} bytes, and a file of its kind at most {largest:,}.")
        return file.read(size)


def read_text(path: str | os.PathLike[str], *, largest: int | None = None) -> str:
    """The content of a regular file of UTF-8 text; a byte-order mark is left out.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is none, larger than `largest` bytes, or not UTF-8; the message names it.
    """
    try:
        return read_bytes(path, largest=largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{os.fspath(path)} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error


def read_json(
    path: str | os.PathLike[str], kind: type[T], *, instead: str = "Copy the folder again from its source."
) -> T:
    """The content of a JSON file, of a given form.

    Args:
        path: the file.
        kind: its form, in types: a `TypedDict`, `list[int]`, `dict[str, float | None]`, ... Keys that a `TypedDict`
            does not name are kept.
        instead: what to do if it is another.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, no JSON, or of another form; the message says where, and ends with `instead`.
    """
    name = os.fspath(path)
    try:
        value: T = parse_json(read_bytes(path, largest=LARGEST_JSON))
    except ValueError as error:
        why = str(error) if str(error).startswith(name) else f"{name} is not sound JSON ({error})."
        raise ValueError(f"{why} {instead}") from error
    if (misfit := misfit_of(value, kind)) is not None:
        raise ValueError(f"{name}: {misfit}. {instead}")
    return value


def read_json_lines(path: str | os.PathLike[str], kind: type[T]) -> list[T]:
    """The content of a file of one JSON value a line, each of a given form; as `read_json` but for the size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, or a line is no JSON or of another form; the message names file and line.
    """
    values: list[T] = []
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        if not line:
            continue
        where = f"{os.fspath(path)}, line {number}"
        try:
            value: T = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where} is not sound JSON ({error}).") from error
        if (misfit := misfit_of(value, kind)) is not None:
            raise ValueError(f"{where}: {misfit}.")
        values.append(value)
    return values


def parse_json(data: str | bytes) -> Any:
    """JSON, and nothing that only Python takes for it.

    Raises:
        ValueError: it is none, or nested more deeply than can be read.

    Example:
        >>> parse_json("[NaN]")
        Traceback (most recent call last):
        ValueError: NaN is not JSON
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    def whole(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise ValueError(f"a number has {len(digits)} digits")
        return int(digits)

    try:
        return json.loads(data, parse_constant=refuse, parse_int=whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def finite(value: Any) -> Any:
    """The same as strict JSON has it: numbers that it cannot hold are None, dataclasses are dicts of their fields.

    Example:
        >>> finite({"nll": math.inf, "per_seed": (0.5, 1.0)})
        {'nll': None, 'per_seed': [0.5, 1.0]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: finite(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_text(value: Any, *, indent: int = 2) -> str:
    """What a JSON file holds: `finite(value)`, indented.

    Example:
        >>> json_text([math.nan])
        '[\\n  null\\n]\\n'
    """
    return json.dumps(finite(value), indent=indent, allow_nan=False) + "\n"


def misfit_of(value: Any, kind: Any, at: str = "it") -> str | None:
    """Where a value that was read from JSON is not of a form, in words; None where it is.

    Args:
        value: what was read.
        kind: the form, as of `read_json`.
        at: what to call the value.

    Example:
        >>> misfit_of({"a": [1, "2"]}, dict[str, list[int]])
        "['a'][1] is '2', not a whole number"
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return None
    if is_typeddict(kind):
        return _misfit_of_typed(value, kind, at)
    if origin is Literal:
        return None if value in parts and type(value) in map(type, parts) else _not(at, value, kind)
    if origin in (Union, UnionType):
        return None if any(misfit_of(value, part) is None for part in parts) else _not(at, value, kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _misfit_of_fields(value, kind, at)
    if origin in (list, tuple, dict, Mapping):
        if not isinstance(value, list if origin in (list, tuple) else dict):
            return _not(at, value, kind)
        parts = parts[:1] if origin is tuple else parts
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        return next(filter(None, (misfit_of(item, parts[-1], _within(at, key)) for key, item in inside)), None)
    allowed: Any = {float: (int, float), type(None): type(None)}.get(kind, kind)
    fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    return None if fits else _not(at, value, kind)


def _misfit_of_typed(value: Any, kind: Any, at: str) -> str | None:
    if not isinstance(value, dict):
        return _not(at, value, kind)
    if missing := sorted(kind.__required_keys__ - value.keys()):
        return f"{at} lacks {', '.join(missing)}"
    hints: Mapping[str, Any] = get_type_hints(kind)
    there = ((name, hint) for name, hint in hints.items() if name in value)
    return next(filter(None, (misfit_of(value[name], hint, _within(at, name)) for name, hint in there)), None)


def _misfit_of_fields(value: Any, kind: Any, at: str) -> str | None:
    if not isinstance(value, dict):
        return _not(at, value, kind)
    hints: Mapping[str, Any] = get_type_hints(kind)
    for problem, names in (("lacks", hints.keys() - value.keys()), ("has the unknown", value.keys() - hints.keys())):
        if names:
            return f"{at} {problem} {', '.join(map(repr, sorted(names)))}"
    return next(filter(None, (misfit_of(value[name], hint, _within(at, name)) for name, hint in hints.items())), None)


def _within(at: str, key: str | int) -> str:
    return f"{'' if at == 'it' else at}[{key!r}]"


def _not(at: str, value: Any, kind: Any) -> str:
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    return f"{at} is {shown}, not {_in_words(kind)}"


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_in_words, parts)))
    if origin in (list, tuple):
        return "a list"
    if origin in (dict, Mapping) or is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return "an object"
    names: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(kind, "null")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
