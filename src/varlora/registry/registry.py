"""Things by name: varlora's own, what a program has registered, and what installed packages bring (entry points).

A package brings a method, say, by an entry point in its `pyproject.toml`:

    [project.entry-points."varlora.methods"]
    lion = "my_package.lion:Lion"

Names are known without importing a package; it is imported when one of its things is looked up.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping of names to things of one kind, which packages and programs may add to.

    Example:
        >>> colours = Registry("varlora.colours", {"red": "#f00"}, check=lambda name, thing: None)
        >>> colours.register("blue", "#00f")
        >>> dict(colours)
        {'red': '#f00', 'blue': '#00f'}
    """

    def __init__(self, group: str, own: Mapping[str, T], check: Callable[[str, T], None]) -> None:
        """Makes a registry.

        Args:
            group: of the entry points, "varlora.methods".
            own: varlora's own, by name.
            check: raises ValueError where a thing under a name is not of the kind.
        """
        self.group, self._own, self._check = group, own, check
        self._added: dict[str, T] = {}

    def register(self, name: str, thing: T) -> None:
        """Adds a thing for as long as the program runs; the same name may be given again, as in a notebook.

        Raises:
            ValueError: varlora has one of that name, or the thing is not of the kind.
        """
        if name in self._own:
            raise ValueError(f"{self.group} has {name!r} of its own; choose another name.")
        self._check(name, thing)
        self._added[name] = thing

    @property
    def imported(self) -> Mapping[str, T]:
        """What was registered or has been looked up, beside varlora's own."""
        return dict(self._added)

    @property
    def not_imported(self) -> tuple[str, ...]:
        """Names that packages bring and nobody has looked up."""
        return tuple(name for name in self._entries() if name not in self._added)

    def module_of(self, name: str) -> str | None:
        """The module that a package brings a thing from; None of varlora's own, and of what a program registered."""
        entry = None if name in self._own else self._entries().get(name)
        return entry.module if entry is not None else None

    def __getitem__(self, name: str) -> T:
        if name in self._own:
            return self._own[name]
        if name not in self._added:
            self._added[name] = self._loaded(self._entries()[name])
        return self._added[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._added or name in self._entries()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._own, *self._added, *self._entries()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _entries(self) -> Mapping[str, EntryPoint]:
        return _entry_points(self.group, frozenset(self._own), tuple(sys.path))

    def _loaded(self, entry: EntryPoint) -> T:
        whose = f"{entry.name!r} of {self.group}, from {_package(entry)} ({entry.value})"
        try:
            thing: T = entry.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{whose}, cannot be imported: {error}. Mend or uninstall the package.") from error
        try:
            self._check(entry.name, thing)
        except ValueError as error:
            raise ValueError(f"{whose}: {error}") from error
        return thing


@cache
def _entry_points(group: str, own: frozenset[str], path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """By name, those of the packages on the path; kept, since reading every package's list takes a while."""
    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        other = entries.setdefault(entry.name, entry)
        if other.value != entry.value:
            both = f"{_package(other)} and {_package(entry)}"
            raise ValueError(f"{both} both bring {entry.name!r} for {group}; uninstall one of them.")
    for name in own & entries.keys():
        logger.warning("%s has %r of its own; that of %s is left aside", group, name, _package(entries.pop(name)))
    return entries


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist is not None else "a package"
