"""The parser of a command: options from dataclasses, a YAML file below them, and hints for what is misspelt."""

from __future__ import annotations

import argparse
import dataclasses
from argparse import Action, Namespace
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from rich.text import Text
from rich_argparse import RawDescriptionRichHelpFormatter, RichHelpFormatter

from varlora.cli.console import print_error
from varlora.io.nearest import nearest
from varlora.io.yaml_files import read_yaml
from varlora.registry.option_fields import types_of


class HelpFormatter(RawDescriptionRichHelpFormatter):
    """Help in colours; examples stay as they stand, and a default is told where there is one."""

    help_markup = False
    text_markup = False
    group_name_formatter = str

    def _rich_fill_text(self, text: Text, width: int, indent: Text) -> Text:
        examples = text.plain.lstrip().startswith("Examples:")
        fill = RawDescriptionRichHelpFormatter if examples else RichHelpFormatter
        return fill._rich_fill_text(self, text, width, indent)

    def _get_help_string(self, action: Action) -> str | None:
        has_default = action.default not in (None, False, "", [], argparse.SUPPRESS)
        if action.help is None or not has_default or not action.option_strings:
            return action.help
        return f"{action.help} [default: {_shown(action.default)}]"


class _Extend(Action):
    """Words of an option that is given more than once are one list; the first time they replace the default."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        there = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(() if there is self.default else there), *values])


LISTS = ("answers", "dataset_columns", "dataset_splits", "lora_target_modules", "report_to", "shift_tasks")
"""Options of one word that is a list, comma-separated: of two such words neither need be all that is meant."""


class _Once(Action):
    """Stores a list in one word; a second one, which is another, is refused."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        if parser.lists.setdefault(self.dest, values) != values:
            first = parser.lists[self.dest]
            raise argparse.ArgumentError(
                self, f"it is {first!r} and {values!r}, and one list is read: write it once, comma-separated"
            )
        setattr(namespace, self.dest, values)


class CommandParser(argparse.ArgumentParser):
    """A parser whose options are a dataclass's fields (`varlora.registry.option_fields.option`).

    `--lora_r` and `--lora-r` both exist; help shows the one that the YAML file and the run folder use, too.
    """

    def __init__(
        self, name: str, *, about: str, examples: str, options: Any = None, usage: str = "", first: str = ""
    ) -> None:
        """Makes the parser.

        Args:
            name: the command.
            about: what it does.
            examples: shown at the end of the help.
            options: a dataclass.
            usage: what follows the command in the usage line.
            first: names of the options that most people need, which the help shows before the others.
        """
        self.first = tuple(first.split())
        self.titled: dict[str, Any] = {}
        self.field_names: list[str] = []
        self.reading: str | None = None
        self.lists: dict[str, str] = {}
        super().__init__(
            prog=f"varlora {name}",
            usage=f"varlora {name} {usage or '[OPTIONS]'}",
            description=about,
            epilog=f"Examples:\n{examples.strip(chr(10))}",
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        if options is not None:
            self._add_fields(options)
        self.flag("debug", "Show the traceback of an error.")

    def _add_fields(self, kind: Any) -> None:
        types = types_of(kind)
        for field in dataclasses.fields(kind):
            if "help" in field.metadata:
                self.add_field(field, types[field.name], title=field.metadata["group"], default=field.default)

    def add_field(
        self, field: dataclasses.Field[Any], kind: Any, *, title: str, default: Any = None, help_text: str | None = None
    ) -> None:
        """Adds an option that is a dataclass's field.

        Args:
            field: of the dataclass.
            kind: its type.
            title: of the group in the help.
            default: what is read where it is not given.
            help_text: in place of the field's own.
        """
        description = help_text if help_text is not None else field.metadata.get("help", "")
        details = {"default": default, "help": description.replace("%", "%%"), **_reading(kind)}
        if details.get("type") is _truth and field.default is not None:
            details |= {"nargs": "?", "const": True}  # --bf16 alone
        if field.name in LISTS:
            details["action"] = _Once
        self.titled_group(title).add_argument(*_spellings(field.name), **details)
        self.field_names.append(field.name)

    def titled_group(self, title: str) -> Any:
        """A group of options in the help."""
        if title not in self.titled:
            self.titled[title] = self.add_argument_group(title)
        return self.titled[title]

    def option(self, name: str, help_text: str, *, title: str | None = None, **details: Any) -> None:
        """Adds an option that is no field, under both its spellings, to the group of that title.

        One of several words (`nargs="+"`) may be given more than once, which is as if all stood behind one.
        """
        if details.get("nargs") == "+":
            details["action"] = _Extend
        if name in LISTS:
            details["action"] = _Once
        group = self if title is None else self.titled_group(title)
        group.add_argument(*_spellings(name), help=help_text, **details)

    def flag(self, name: str, help_text: str) -> None:
        """Adds a switch, which takes no value."""
        self.option(name, help_text, action="store_true")

    def parse(self, words: Sequence[str]) -> Namespace:
        """Reads a command line: its options, over those of the file under --config, over the defaults.

        Raises:
            SystemExit: with code 2 and a message on stderr, if the command line is wrong; with 0 after --help.
            ValueError: if the file is.
        """
        self.finish_help()
        settings = Namespace()
        if any(action.dest == "config" for action in self._actions) and (file := value_in(words, "config")) is not None:
            settings = self._from_yaml(file)
        self.lists = {}  # what the file says is overridden
        arguments, rest = self.parse_known_args(list(words), settings)
        if rest:
            self.refuse(rest)
        return arguments

    def error(self, message: str) -> NoReturn:
        """Says what is wrong with the command line, and leaves with code 2."""
        if self.reading is not None:
            raise ValueError(f"{self.reading}: {message}.")
        print_error(
            f"{message.rstrip('.?')}{'?' if message.endswith('?') else '.'} `{self.prog} --help` shows the options."
        )
        raise SystemExit(2)

    @property
    def note(self) -> str:
        """What else may be said of an unknown option."""
        return ""

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Says what is wrong with words that are no option of this command."""
        unknown = [word for word in rest if word.startswith("-") and word != "-"]
        if not unknown:
            self.error(f"unexpected {' '.join(map(repr, rest))}")
        known = self.known_words()
        given = unknown[0].split("=")[0]
        hint = nearest(f"--{given.lstrip('-').replace('-', '_')}", known, otherwise="")
        message = f"unknown option {given}; {hint}" if hint else f"unknown option {given}."
        self.error(f"{message} {self.note}".strip())

    def _from_yaml(self, file: str) -> Namespace:
        settings, self.reading = Namespace(), file
        for name, value in self.read_settings(file).items():
            if value is None:
                continue
            if isinstance(value, list):
                value = ",".join(map(str, value))
            if isinstance(value, dict):
                raise ValueError(f"{file}: {name} is {value!r}; it must be one value, or a list.")
            one, _ = self.parse_known_args([f"--{name}={value}"])
            setattr(settings, name, getattr(one, name))
        self.reading = None
        return settings

    def read_settings(self, file: str) -> dict[str, Any]:
        """The settings of a YAML file; those that are None stay at their default.

        Raises:
            ValueError: it names an option that does not exist.
        """
        return read_yaml(file, self.field_names)

    def known_words(self) -> list[str]:
        """The options that a misspelt one is compared with."""
        return [word for action in self._actions for word in action.option_strings if word.startswith("--")]

    def add_every_option(self) -> None:
        """Adds the options that depend on others, all of them: for what shows or completes them."""

    def finish_help(self) -> None:
        """Puts what most people need first, and gives each option one spelling and a word for its value."""
        if self.first:
            self._show_first()
        for action in self._actions:
            # Every spelling stays known; the help shows the first.
            long = [word for word in action.option_strings if word.startswith("--")]
            action.option_strings = [*(w for w in action.option_strings if not w.startswith("--")), *long[:1]]
            if action.option_strings and action.metavar is None and action.choices is None and action.nargs != 0:
                action.metavar = _placeholder(action)

    def _show_first(self) -> None:
        shown = self.add_argument_group("Most used")
        actions = {action.dest: action for action in self._actions}
        for name in self.first:
            if (action := actions.get(name)) is not None:  # not every method has a learning rate
                for group in self._action_groups:
                    if action in group._group_actions:
                        group._group_actions.remove(action)
                shown._group_actions.append(action)
        ends = (self._positionals, self._optionals, shown)
        between = [group for group in self._action_groups if group not in ends]
        self._optionals.title = "Other options"
        self._action_groups[:] = [self._positionals, shown, *between, self._optionals]


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _reading(kind: Any) -> dict[str, Any]:
    """How a value of a field's type is read: of `float | Literal["auto"] | None` a number or that word."""
    union = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    parts = [part for part in union if part is not type(None)]
    words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    if words:
        return {"type": _NumberOr(words)} if float in parts else {"choices": words}
    (one,) = parts
    return {"type": _truth if one is bool else one}


def _truth(text: str) -> bool:
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


@dataclasses.dataclass(frozen=True)
class _NumberOr:
    words: tuple[str, ...]

    def __call__(self, text: str) -> float | str:
        return text if text in self.words else float(text)

    def __repr__(self) -> str:  # argparse says "invalid ... value"
        return f"number or {' or '.join(map(repr, self.words))}"


def value_in(words: Sequence[str], name: str) -> str | None:
    """What an option is given as, before the rest of the command line is read; None where it is not, or not rightly.

    Example:
        >>> value_in(["--seed", "1", "--config=a.yaml"], "config")
        'a.yaml'
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument(f"--{name}")
    try:
        value: str | None = getattr(finder.parse_known_args(list(words))[0], name)
    except argparse.ArgumentError:
        return None  # the real parser says what is wrong
    return value


def _placeholder(action: Action) -> str:
    for ending, word in (("_file", "FILE"), ("_dir", "FOLDER")):
        if action.dest.endswith(ending):
            return word
    if isinstance(action.type, _NumberOr):
        return "|".join(("X", *action.type.words))
    names: Mapping[Any, str] = {int: "N", float: "X", _truth: "true|false"}
    return names.get(action.type, "TEXT")


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
