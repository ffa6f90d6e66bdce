"""Options as fields of a dataclass: help text, group and bounds stand at the field, and the checks follow from them.

The command line, YAML files and the lists of options are read off the same fields, and need no torch.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

LARGEST_EXACT = 1 << 53
"""Beyond it not every whole number is a floating-point number."""
_hints_of: Callable[[type], Mapping[str, Any]] = cache(get_type_hints)  # settings ask for those of every method
HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    "above": operator.gt,
    "at_least": operator.ge,
    "at_most": operator.le,
    "below": operator.lt,
}
"""Each bound of a number; NaN is within none."""
NUMBERS, OPEN = (int, float), (type(None), str)


def option(
    default: Any,
    help_text: str,
    *,
    group: str | None = None,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass's field that is an option.

    Args:
        default: its value when it is not given.
        help_text: what it does, for the command line and the lists.
        group: its title in the help.
        above, at_least, at_most, below: bounds of a number; None and words such as "auto" have none.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Lion:
        ...     lion_beta: float = option(0.9, "Decay of the momentum.", at_least=0, below=1)
        >>> Lion().lion_beta
        0.9
    """
    bounds = {"above": above, "at_least": at_least, "at_most": at_most, "below": below}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"help": help_text, "group": group, "bounds": given})


def types_of(kind: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields, by name."""
    hints = _hints_of(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def checked_values(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values for some of a dataclass's options, each of its type and within its bounds; 5 for a float becomes 5.0.

    Args:
        kind: the dataclass.
        given: by the option's name.

    Raises:
        ValueError: a value is of another type, infinite, or out of its bounds; the message names it and what is
            allowed.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Lion:
        ...     lion_beta: float = option(0.9, "Decay of the momentum.", at_least=0, below=1)
        >>> checked_values(Lion, {"lion_beta": 0})
        {'lion_beta': 0.0}
        >>> checked_values(Lion, {"lion_beta": 1.0})
        Traceback (most recent call last):
        ValueError: lion_beta is 1.0; it must be in [0, 1).
    """
    fields, types = {field.name: field for field in dataclasses.fields(kind)}, types_of(kind)
    return {name: _checked(fields[name], types[name], value) for name, value in given.items()}


def check_options(instance: Any) -> None:
    """Checks every option of a frozen dataclass, from its `__post_init__`.

    Raises:
        ValueError: as `checked_values`.
    """
    given = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    for name, value in checked_values(type(instance), given).items():
        object.__setattr__(instance, name, value)


def allowed(field: dataclasses.Field[Any], kind: Any) -> str:
    """What an option may be, in words.

    Args:
        field: of the dataclass.
        kind: its type.

    Example:
        >>> allowed(option(None, "Width.", above=0), float | Literal["auto"] | None)
        "a number or 'auto', positive"
    """
    bounds = _bounds_in_words(field.metadata.get("bounds", {}))
    return ", ".join(filter(None, [_described(kind), bounds]))


def _checked(field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    name, bounds = field.name, field.metadata.get("bounds", {})
    if not _fits(value, kind):
        raise ValueError(f"{name} is {value!r}; it must be {_described(kind)}.")
    if isinstance(value, int) and float in (kind, *get_args(kind)):
        if abs(value) > LARGEST_EXACT:
            raise ValueError(f"{name} is {value!r}, which no floating-point number is.")
        value = float(value)  # 5 and 5.0 are one setting
    if bounds and not isinstance(value, OPEN) and not all(HOLDS[name](value, bound) for name, bound in bounds.items()):
        raise ValueError(f"{name} is {value!r}; it must be {_bounds_in_words(bounds)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be finite.")
    return value


def _bounds_in_words(bounds: Mapping[str, float]) -> str:
    if not bounds:
        return ""
    if "at_least" in bounds and ("below" in bounds or "at_most" in bounds):
        above = f"{bounds['below']:.10g})" if "below" in bounds else f"{bounds['at_most']:.10g}]"
        return f"in [{bounds['at_least']:.10g}, {above}"
    if bounds == {"above": 0}:
        return "positive"
    return " and ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in bounds.items())


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_args(kind):
        return any(_fits(value, one) for one in get_args(kind))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, NUMBERS if kind is float else kind)


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return f"one of {', '.join(map(repr, words))}" if len(words) > 1 else repr(words[0])
    if get_args(kind):
        return " or ".join(_described(one) for one in get_args(kind) if one is not type(None))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
