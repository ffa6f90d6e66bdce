"""What `varlora train` is asked: what every run is, and the options of its method."""

from __future__ import annotations

import argparse
import dataclasses
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from varlora.cli.parsing import CommandParser, value_in
from varlora.io.yaml_files import load_yaml, read_yaml
from varlora.methods import METHODS, checked_options, methods_with, options_of
from varlora.methods.known import REPLACED_OPTIONS
from varlora.registry.option_fields import types_of
from varlora.runs.config import RunConfig, options_elsewhere, setting_names

EXAMPLES = """
  varlora train --model_name_or_path Qwen/Qwen3-0.6B --task arc_challenge --output_dir runs/arc
  varlora train --model_name_or_path models/my-llama --train_file train.jsonl --test_file test.jsonl \\
      --method ivon --num_train_epochs 3 --output_dir runs/mine
  varlora train --config recipe.yaml --seed 1 --output_dir runs/seed1
  varlora train --config recipe.yaml --resume        after an interruption
  varlora train --method swag --help                 the options of one method
"""
FIRST = "model_name_or_path task train_file test_file output_dir method learning_rate num_train_epochs config resume"


def parser() -> CommandParser:
    """Every setting of a run, and how to treat what is there already."""
    command = TrainParser(
        "train",
        about=(
            "Fine-tune a model with LoRA on a task, keep the posterior over the adapter's weights, and measure it on "
            "every split. The folder it writes is an ordinary PEFT adapter (the posterior's mean) with the posterior "
            "beside it."
        ),
        examples=EXAMPLES,
        options=RunConfig,
        first=FIRST,
    )
    command.option("config", "YAML file of options; what the command line says goes before it.", metavar="FILE")
    command.flag("overwrite", "Replace the output folder, and what is left of an unfinished run.")
    command.flag("resume", "Go on from the last checkpoint of an interrupted run with the same settings.")
    command.flag("no_progress", "Show no progress bars.")
    return command


class TrainParser(CommandParser):
    """Knows the options of the method that the command line or the YAML file names; the help, of every method."""

    method = RunConfig.method

    def parse(self, words: Sequence[str]) -> Namespace:
        """Reads a command line (see `CommandParser.parse`).

        Raises:
            ValueError: there is no such method, or it has no such option.
        """
        named = value_in(words, "method")
        if named is None and (file := value_in(words, "config")) is not None:
            named = load_yaml(file).get("method")
        if named is None and {"-h", "--help"} & set(words):
            self.add_every_option()
        else:
            self.method = str(named if named is not None else self.method)
            self._add_method()
        return super().parse(words)

    def read_settings(self, file: str) -> dict[str, Any]:
        """As every command; an option of another method may be there as null, as in the folder of an older run."""
        values = read_yaml(file, setting_names([self.method]))
        own = set(self.field_names)
        try:
            checked_options(self.method, {name: value for name, value in values.items() if name not in own})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return {name: value for name, value in values.items() if name in own}

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Says which methods have an option that this one lacks."""
        given = [word.partition("=")[0].lstrip("-").replace("-", "_") for word in rest if word.startswith("--")]
        checked_options(self.method, {name: True for name in given if methods_with(name) or name in REPLACED_OPTIONS})
        super().refuse(rest)

    @property
    def note(self) -> str:
        """Packages may have the option."""
        return options_elsewhere().strip()

    def known_words(self) -> list[str]:
        """The options of every method are compared with, too."""
        return list(dict.fromkeys([*super().known_words(), *(f"--{name}" for name in setting_names())]))

    def _add_method(self) -> None:
        kind = options_of(self.method)
        types = types_of(kind)
        for field in dataclasses.fields(kind):
            helps = field.metadata.get("help", "")
            if field.default is not None:
                helps = f"{helps} [default: {field.default}]".strip()
            self._add_option(self.method, field, types[field.name], title=f"Method {self.method}", help_text=helps)

    def add_every_option(self) -> None:
        """Each option once, with what it is to the methods that have it."""
        first_of: dict[str, tuple[str, dataclasses.Field[Any], Any]] = {}
        helps: dict[str, dict[str, list[str]]] = {}
        for method in METHODS:
            kind = options_of(method)
            for field in dataclasses.fields(kind):
                first_of.setdefault(field.name, (method, field, types_of(kind)[field.name]))
                helps.setdefault(field.name, {}).setdefault(field.metadata.get("help", ""), []).append(method)
        for name, (method, field, kind) in first_of.items():
            self._add_option(method, field, kind, title="Options of the methods", help_text=_by_method(helps[name]))

    def _add_option(self, method: str, field: dataclasses.Field[Any], kind: Any, *, title: str, help_text: str) -> None:
        try:
            self.add_field(field, kind, title=title, help_text=help_text)
        except argparse.ArgumentError as error:
            raise ValueError(
                f"method {method!r} has the option {field.name}, which `varlora train` has, too; rename it."
            ) from error


def _by_method(helps: Mapping[str, Sequence[str]]) -> str:
    """An option's help texts, each behind the methods that it is of."""
    parts = []
    for text, methods in helps.items():
        others = [name for name in METHODS if name not in methods]
        whose = f"all but {', '.join(others)}" if len(others) < len(methods) else ", ".join(methods)
        parts.append(f"{whose}: {text}")
    return " ".join(parts)
