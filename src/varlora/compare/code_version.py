"""A hash of the code that decides a cell's numbers: of the modules that it imports.

A module counts by its syntax tree without docstrings: comments, layout and documentation change nothing. Which modules
count is read from the import statements, from those that run a cell and from its method's module on. A package's
`__init__` passes names on: who takes a name from it depends on the module where the name is defined, and on no other.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from varlora.methods import METHODS
from varlora.tasks import TASKS

PACKAGE = Path(__file__).parent.parent
ENTRIES = ("varlora.runs.run", "varlora.compare.variants")
"""What trains a cell, and what makes its variants."""
LEFT_OUT = ("varlora.cli", "varlora.demo", "varlora.report")
"""Rooms that can change no number of a run; the demo's rows and model count by their content."""
PASSED_THROUGH = "varlora.compare"
"""Orders runs, and does not count itself; `varlora.compare.variant_files.FORMAT` says when it predicts otherwise."""
LENGTH = 10


@cache
def code_version(method: str, task: str | None = None) -> str:
    """The hash of the code behind the cells of a method, ten hexadecimal digits.

    Args:
        method: its name.
        task: the name of the task. A method and a task of another package count with what their modules import of it.

    Raises:
        ValueError: the method was registered by a program that has no file.

    Example:
        >>> len(code_version("ivon")), code_version("ivon") == code_version("adamw")
        (10, False)
    """
    modules = [METHODS[method].__module__, *filter(None, [TASKS.module_of(task) if task is not None else None])]
    foreign = [module for module in modules if not _is_in(module, "varlora")]
    if not foreign:
        return _own_sources().hash_of(*ENTRIES, *modules)
    packages = {name: place for module in foreign for name, place in _package_of(module).items()}
    return Sources({"varlora": PACKAGE, **packages}).hash_of(*ENTRIES, *modules)


@cache
def _own_sources() -> Sources:
    return Sources({"varlora": PACKAGE})


class Sources:
    """The modules of some packages, and which imports which.

    Args:
        packages: by name, folders of packages; imports of others are not followed.
    """

    def __init__(self, packages: Mapping[str, Path]) -> None:
        self._packages = packages
        self._trees: dict[Path, ast.Module] = {}
        self._words: dict[str, str] = {}
        self._imports: dict[str, tuple[str, ...]] = {}

    def hash_of(self, *entries: str) -> str:
        """The hash of the modules that some modules lead to, by name and content."""
        digest = hashlib.sha256()
        for module in sorted(self.reached_from(*entries)):
            if module not in self._words:
                self._words[module] = hashlib.sha256(_tree_in_words(self._tree(module)).encode()).hexdigest()
            digest.update(f"{module}\0{self._words[module]}\n".encode())
        return digest.hexdigest()[:LENGTH]

    def reached_from(self, *entries: str) -> set[str]:
        """The modules that count, of those that the entries import, directly or not."""
        seen, ahead = set[str](), list(entries)
        while ahead:
            module = ahead.pop()
            if module not in seen and not _is_in(module, *LEFT_OUT):
                seen.add(module)
                if module not in self._imports:
                    self._imports[module] = tuple(dict.fromkeys(self._imported_by(module)))
                ahead += self._imports[module]
        return {module for module in seen if not _is_in(module, PASSED_THROUGH)}

    def _tree(self, module: str, *, of_names: bool = False) -> ast.Module:
        """The tree of a module, or of the stub, if there is one, that holds the names it imports when they are used."""
        file = self._file(module)
        assert file is not None
        if of_names and (stub := file.with_suffix(".pyi")).is_file():
            file = stub
        if file not in self._trees:
            self._trees[file] = ast.parse(file.read_text(encoding="utf-8"))
        return self._trees[file]

    def _file(self, module: str) -> Path | None:
        top, *inner = module.split(".")
        if top not in self._packages:
            return None
        place = self._packages[top].joinpath(*inner)
        return next((f for f in (place / "__init__.py", place.with_suffix(".py"), place) if f.is_file()), None)

    def _imported_by(self, module: str) -> Iterator[str]:
        for node in _statements_that_run(self._tree(module)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if self._file(alias.name) is not None)
            elif isinstance(node, ast.ImportFrom) and node.module is not None and self._file(node.module) is not None:
                yield from (self._home(node.module, alias.name) for alias in node.names)

    def _home(self, module: str, name: str) -> str:
        """The module where a name is defined that is imported from another."""
        if self._file(f"{module}.{name}") is not None:
            return f"{module}.{name}"
        file = self._file(module)
        if file is not None and file.name == "__init__.py":
            for node in ast.walk(self._tree(module, of_names=True)):
                if isinstance(node, ast.ImportFrom) and node.module is not None:
                    home = f"{module}.{node.module}" if node.level else node.module
                    for alias in node.names:
                        if (alias.asname or alias.name) == name and self._file(home) is not None:
                            return self._home(home, alias.name)
        return module


def _statements_that_run(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a module, however deep, without those that are there for types alone."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, name, ()):
            if not (
                isinstance(statement, ast.If)
                and isinstance(statement.test, ast.Name)
                and statement.test.id == "TYPE_CHECKING"
            ):
                yield statement
                yield from _statements_that_run(statement)


def _tree_in_words(node: object) -> str:
    """A syntax tree as text, equal for all versions of Python: without places, docstrings and empty fields."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({','.join(f'{name}={_tree_in_words(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(_tree_in_words(item) for item in node if not _is_docstring(item))}]"
    return repr(node)


def _is_docstring(node: object) -> bool:
    """Of a module, a class, a function or an attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _package_of(module: str) -> dict[str, Path]:
    """A module's package, by its name: its folder, or the file of a module that is in none."""
    top = module.partition(".")[0]
    package = importlib.import_module(top)
    folders = list(getattr(package, "__path__", []))
    place = folders[0] if folders else getattr(package, "__file__", None)
    if place is None:
        raise ValueError(
            f"the source of {module} is in no file, so that its cells could not be told apart. Put the method into a "
            "file, or into a package that brings it by an entry point."
        )
    return {top: Path(place)}
