"""Which methods there are: varlora's own, those of installed packages, and those that a program has registered."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from varlora.io.nearest import nearest
from varlora.ivon.options import MOVEMENT_REPLACED
from varlora.methods.options import (
    AdamWOptions,
    BlobOptions,
    EmaOptions,
    EnsembleOptions,
    IvonOptions,
    LaplaceOptions,
    McDropoutOptions,
    MethodOptions,
    ScalablOptions,
    SwagOptions,
    TemperatureOptions,
    TfbOptions,
    ZeroShotOptions,
)
from varlora.registry.option_fields import allowed, checked_values, types_of
from varlora.registry.registry import Registry

M = TypeVar("M", bound=type)

OWN_OPTIONS: Mapping[str, type[MethodOptions]] = {
    kind.name: kind
    for kind in (
        AdamWOptions,
        IvonOptions,
        LaplaceOptions,
        BlobOptions,
        ScalablOptions,
        SwagOptions,
        TfbOptions,
        EmaOptions,
        EnsembleOptions,
        McDropoutOptions,
        TemperatureOptions,
        ZeroShotOptions,
    )
}
"""The options of varlora's own methods; the method is the class of the same name without "Options"."""
REPLACED_OPTIONS: Mapping[str, str] = {"prior_width": MOVEMENT_REPLACED}
"""Options that older versions had, each with what to say of it; as null they may still stand in a file."""


def why_replaced(method: str, name: str, value: object) -> str | None:
    """What to say of an option, or a value of one, that older versions had; None of any other.

    Example:
        >>> why_replaced("ivon", "prior", "movement") == why_replaced("ivon", "prior_width", 3.0)
        True
        >>> why_replaced("ivon", "prior", "adaptive") is None
        True
    """
    if (method, name, value) == ("ivon", "prior", "movement"):
        return MOVEMENT_REPLACED
    return REPLACED_OPTIONS.get(name)


def class_name(kind: type[MethodOptions]) -> str:
    """What the class is called that has these options and `fit`.

    Example:
        >>> class_name(McDropoutOptions)
        'McDropout'
    """
    return kind.__name__.removesuffix("Options")


def check_method(name: str, kind: Any) -> None:
    """Checks that a class is a method.

    Raises:
        ValueError: it is no dataclass with `fit`, has another name, or has an option without a default or of a type
            that no command line can give.
    """
    if not (isinstance(kind, type) and is_dataclass(kind) and callable(getattr(kind, "fit", None))):
        raise ValueError(f"{kind!r} is no method; a method is a frozen dataclass with `name` and `fit(job)`.")
    if getattr(kind, "name", None) != name:
        raise ValueError(f"the method {kind.__name__} is named {getattr(kind, 'name', None)!r}, not {name!r}.")
    for field in fields(kind):
        if field.default is MISSING:
            raise ValueError(f"the option {field.name} of method {name!r} has no default; give it one.")
        try:
            allowed(field, types_of(kind)[field.name])
        except KeyError as error:
            raise ValueError(
                f"the option {field.name} of method {name!r} is of type {error}; it may be int, float, bool, str, a "
                "Literal of words, one of these or None, or a number or a word."
            ) from error


class _Own(Mapping[str, type[Any]]):
    """varlora's own methods; each is imported when it is looked up."""

    def __getitem__(self, name: str) -> type[Any]:
        kind: type[Any] = getattr(importlib.import_module(f"varlora.methods.{name}"), class_name(OWN_OPTIONS[name]))
        return kind

    def __contains__(self, name: object) -> bool:
        return name in OWN_OPTIONS

    def __iter__(self) -> Iterator[str]:
        return iter(OWN_OPTIONS)

    def __len__(self) -> int:
        return len(OWN_OPTIONS)


METHODS: Registry[type[Any]] = Registry("varlora.methods", _Own(), check_method)
"""The methods' classes by name; each is imported when it is looked up."""


def register_method(kind: M) -> M:
    """Adds a method, for as long as the program runs; an installed package brings one by an entry point instead.

    Args:
        kind: a frozen dataclass with `name` and `fit(job)` (`varlora.methods.Method`), whose fields are its options.

    Returns:
        The class, so that this is a decorator.

    Raises:
        ValueError: it is no method, or varlora has one of its name.

    Example:
        >>> from varlora.methods import AdamW
        >>> register_method(AdamW)
        Traceback (most recent call last):
        ValueError: varlora.methods has 'adamw' of its own; choose another name.
    """
    METHODS.register(str(getattr(kind, "name", kind)), kind)
    return kind


def options_of(name: str) -> type[Any]:
    """The class whose fields are a method's options; it needs no torch, of varlora's own methods.

    Args:
        name: of the method.

    Raises:
        ValueError: there is no such method, or the package that brings it cannot be imported.

    Example:
        >>> [field.name for field in fields(options_of("ema"))]
        ['learning_rate', 'weight_decay', 'label_smoothing', 'ema_decay']
    """
    if name in OWN_OPTIONS:
        return OWN_OPTIONS[name]
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


def summary_of(name: str) -> str:
    """What a method gives: the first line of its options' class.

    Example:
        >>> summary_of("ema")
        "One point: an exponential moving average of AdamW's path"
    """
    return (options_of(name).__doc__ or "").strip().partition("\n")[0].removesuffix(".")


def methods_with(option: str) -> list[str]:
    """The methods that have an option, of varlora's own and those that have been imported.

    Example:
        >>> methods_with("prior_std")
        ['blob', 'scalabl']
    """
    kinds = {**OWN_OPTIONS, **METHODS.imported}
    return [name for name, kind in kinds.items() if option in types_of(kind)]


def checked_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options as given, without those that are None, each of its type and within its bounds.

    Args:
        method: its name.
        given: options by name.

    Raises:
        ValueError: the method has no such option (the message names those that have), a value does not fit, or two do
            not go together.

    Example:
        >>> checked_options("ensemble", {"members": 3, "weight_decay": 1, "learning_rate": None})
        {'members': 3, 'weight_decay': 1.0}
        >>> checked_options("ivon", {"prior_width": 3.0})                    # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: prior_width is 3.0, of an older version: the movement prior, and its width, were replaced by ...
        >>> checked_options("adamw", {"draws": 2})                           # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: method 'adamw' has no option draws; it has ... draws is one of ivon, tfb. Leave out what ...
    """
    kind = options_of(method)
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if (why := why_replaced(method, name, value)) is not None:
            raise ValueError(f"{name} is {value!r}, of an older version: {why}. Leave it out.")
    known = sorted(types_of(kind))
    if strange := sorted(options.keys() - set(known)):
        whose = [f"{name} is one of {', '.join(having)}. " for name in strange if (having := methods_with(name))]
        raise ValueError(
            f"method {method!r} has no option {', '.join(strange)}; it has {', '.join(known) or 'none'}. "
            f"{''.join(whose)}Leave out what does not apply to it."
        )
    options = checked_values(kind, options)
    kind(**options)  # what goes together
    return options
