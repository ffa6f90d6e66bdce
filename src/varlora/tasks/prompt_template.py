"""A prompt of one's own: words with the names of a row's fields in braces, as in `str.format`, and no more of it.

A template is cut into words and names when it is read, and a row's texts are put between the words. Nothing of it is
evaluated: no attributes, no elements, no conversions, no format specifications, and braces in a row's text are text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

Span = tuple[int, int]
"""Start and end (exclusive) in characters."""


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """A template, read.

    Attributes:
        parts: The words before each field and its name; None behind the last field.

    Example:
        >>> template = PromptTemplate.read("Review: {text}\\nSentiment:")
        >>> template.fields, template.filled({"text": "a fine {film}"})
        (('text',), ('Review: a fine {film}\\nSentiment:', [('text', (8, 21))]))
    """

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def read(cls, template: str) -> PromptTemplate:
        """Reads a template.

        Args:
            template: Words with names of fields in braces; {{ and }} are braces.

        Raises:
            ValueError: There is no field, a brace is alone, or a field is more than a name.

        Example:
            >>> PromptTemplate.read("{text.__class__}:")
            Traceback (most recent call last):
            ...
            ValueError: prompt_template has {text.__class__}; allowed in braces: the name of a field alone, as {text}
        """
        try:
            parsed = list(Formatter().parse(template))
        except ValueError as error:
            raise ValueError(
                f"prompt_template {_shown(template)} does not read: {error}; write {{{{ and }}}} for braces that are "
                "no field"
            ) from error
        parts = []
        for words, name, specification, conversion in parsed:
            bare = name and not name.isdigit() and not set(name) & set(".[]{}") and not specification and not conversion
            if name is not None and not bare:
                more = f"!{conversion}" if conversion else ""
                more += f":{specification}" if specification else ""
                raise ValueError(
                    f"prompt_template has {{{name}{more}}}; allowed in braces: the name of a field alone, as {{text}}"
                )
            parts.append((words, name))
        read = cls(parts=tuple(parts))
        if not read.fields:
            raise ValueError(
                f"prompt_template {_shown(template)} has no field, so that all rows would be asked alike; name one in "
                "braces, as {text}"
            )
        if template.endswith((" ", "\t")):
            raise ValueError(
                f"prompt_template {_shown(template)} ends in a space; leave it out, since the answer begins with one "
                "(behind a line break it does not)"
            )
        return read

    @property
    def fields(self) -> tuple[str, ...]:
        """The names in it, each once."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    @property
    def ends_with_line(self) -> bool:
        """Whether an answer starts a line of its own."""
        words, name = self.parts[-1]
        return name is None and words.endswith("\n")

    def filled(self, values: Mapping[str, str]) -> tuple[str, list[tuple[str, Span]]]:
        """The prompt of a row, and where its fields stand in it.

        Args:
            values: A text for each of the fields.
        """
        text, places = "", []
        for words, name in self.parts:
            text += words
            if name is not None:
                places.append((name, (len(text), len(text) + len(values[name]))))
                text += values[name]
        if self.parts[-1][1] is not None:  # a line break at a text's end is none before the answer
            text = text.rstrip()
            places = [(name, (min(start, len(text)), min(end, len(text)))) for name, (start, end) in places]
        return text, places


def _shown(template: str) -> str:
    return repr(template if len(template) <= 80 else f"{template[:77]}...")
