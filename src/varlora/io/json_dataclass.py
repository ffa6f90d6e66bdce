"""A dataclass from the JSON that it was written as: objects are its dataclasses, and lists its tuples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from varlora.io.files import finite, misfit_of

T = TypeVar("T")


def from_json(value: Any, kind: type[T]) -> T:
    """A dataclass, read back from `dataclasses.asdict`'s JSON.

    Args:
        value: what was read.
        kind: the dataclass; its fields are of the forms of `varlora.io.files.read_json`, of tuples and dataclasses.

    Raises:
        ValueError: a field is missing, unknown or of another form; the message says which.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point:
        ...     at: tuple[float, ...]
        >>> from_json({"at": [1, 2]}, Point)
        Point(at=(1, 2))
        >>> from_json({"at": [1, "b"]}, Point)
        Traceback (most recent call last):
        ValueError: ['at'][1] is 'b', not a number
    """
    if (misfit := misfit_of(value, kind)) is not None:
        raise ValueError(misfit)
    made: T = _made(value, kind)
    return made


def with_defaults(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The JSON of a dataclass with the defaults of the fields that it leaves out.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point:
        ...     name: str
        ...     at: tuple[float, ...] = (0.0,)
        >>> with_defaults({"name": "a"}, Point)
        {'at': [0.0], 'name': 'a'}
    """
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = finite(field.default_factory())
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = finite(field.default)
    return {**defaults, **values}


def without_unknown(value: Any, kind: Any) -> tuple[Any, list[str]]:
    """What was read without the fields that its dataclasses do not have, and where these stood.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point:
        ...     at: float
        >>> without_unknown({"at": 1, "size": 2}, Point)
        ({'at': 1}, ['size'])
    """
    unknown: list[str] = []
    return _known(value, kind, "", unknown), unknown


def _known(value: Any, kind: Any, where: str, unknown: list[str]) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kinds = [part for part in parts if dataclasses.is_dataclass(part) or get_origin(part) is tuple]
        return _known(value, kinds[0], where, unknown) if len(kinds) == 1 else value
    if origin is tuple and isinstance(value, list):
        return [_known(item, parts[0], f"{where}[{number}]", unknown) for number, item in enumerate(value)]
    if not dataclasses.is_dataclass(kind) or not isinstance(value, dict):
        return value
    hints, inside = get_type_hints(kind), f"{where}." if where else ""
    unknown += [f"{inside}{name}" for name in value if name not in hints]
    known = {name: item for name, item in value.items() if name in hints}
    return {name: _known(item, hints[name], f"{inside}{name}", unknown) for name, item in known.items()}


def _made(value: Any, kind: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        make: Any = kind
        return make(**{name: _made(item, hints[name]) for name, item in value.items()})
    if origin in (Union, UnionType):
        return _made(value, next(part for part in parts if misfit_of(value, part) is None))
    if origin is tuple:
        return tuple(_made(item, parts[0]) for item in value)
    if origin is Mapping:
        return {key: _made(item, parts[1]) for key, item in value.items()}
    return value
