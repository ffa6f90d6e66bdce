"""YAML files: plans, the configurations of runs, and tables of published numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any

import yaml

from varlora.io.files import MEBIBYTE, read_text
from varlora.io.nearest import nearest

LARGEST = MEBIBYTE
MOST_ALIASES = 100
MOST_NODES = 100_000
"""A node that an alias repeats is counted each time: ten aliases of ten of ten are a thousand nodes."""
DEEPEST = 50


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-4 and 1.0e7 are some (to YAML 1.1 they are text). No key may be there twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.aliases = self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, with what it repeats counted."""
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                raise yaml.composer.ComposerError(None, None, f"more than {MOST_ALIASES} aliases")
            node: yaml.Node | None = super().compose_node(parent, index)
            if id(node) not in self.sizes:
                raise yaml.composer.ComposerError(None, None, "an alias of what it is part of")
            return node
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None:
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            inside = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
            self.sizes[id(node)] = 1 + sum(self.sizes[id(one)] for one in inside)
            if self.sizes[id(node)] > MOST_NODES:
                raise yaml.composer.ComposerError(None, None, f"more than {MOST_NODES:,} values, aliases written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, none of whose keys is there twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # another mapping's keys, which the mapping's own go before
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or mapping", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(file: str | Path, known: Collection[str]) -> dict[str, Any]:
    """The settings of a YAML file.

    Args:
        file: the file: one mapping of option names to values.
        known: the options that exist.

    Raises:
        ValueError: it is not a mapping, or names an option that does not exist (the nearest is suggested).
    """
    values = load_yaml(file)
    for name in values:
        if name not in known:
            hint = nearest(str(name), known, otherwise="`varlora train --help` lists them.")
            raise ValueError(f"{file}: unknown option {name!r}; {hint}")
    return values


def load_yaml(file: str | Path) -> dict[str, Any]:
    """What a YAML file of settings holds, with YAML 1.2's numbers.

    Raises:
        ValueError: there is no such file, it is not YAML, a key is there twice, it is not a mapping, or it is more than
            any file of settings (see `parse_yaml`).
    """
    path = Path(file)
    if not path.exists():
        raise ValueError(f"there is no configuration file {path}.")
    values = parse_yaml(path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one mapping of option names to values.")
    return values


def parse_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no regular file, larger than `LARGEST` bytes, not UTF-8, not YAML, has a key twice, or more
            than `MOST_ALIASES` aliases or `MOST_NODES` values (those that aliases repeat counted every time).
    """
    text = read_text(path, largest=LARGEST)
    try:
        return yaml.load(text, Loader=_Yaml)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
