"""YAML files of settings: plans, and the configurations of runs."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from varlora.nearest import nearest


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-4 and 1.0e7 are some (to YAML 1.1 they are text). No key may be there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, none of whose keys is there twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if (key := self.construct_object(key_node, deep=True)) in seen:
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
    """What a YAML file holds, with YAML 1.2's numbers.

    Raises:
        ValueError: there is no such file, it is not YAML, a key is there twice, or it is not a mapping.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no configuration file {path}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one mapping of option names to values.")
    return values
