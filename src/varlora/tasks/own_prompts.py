"""How the rows of a task with answers are put to a model: in the words of a style or of one's own, alone or as a turn.

The words come first: a style's (`varlora.tasks.prompt_styles`), or a template's. In a chat they are the user's turn,
behind the system's, and the answer is read where the tokenizer's chat template begins the assistant's words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from varlora.tasks.chat import ChatFrame
from varlora.tasks.prompt_styles import ChoiceRole, PromptStyle
from varlora.tasks.prompt_template import PromptTemplate, Span

if TYPE_CHECKING:
    from varlora.tasks.rows import Records

PromptFormat = Literal["plain", "chat"]
WHOLE = ("labels", "choices", "letters")
"""Fields of a template that are answers: too long a row is never cut there."""


@dataclass(frozen=True, kw_only=True)
class OwnPrompt:
    """What is one's own about the prompts of a task with answers.

    Attributes:
        template: The words, with the names of fields in braces: those of the row's shape, such as {text}, the answers
            as {labels}, or {choices} (lettered, one a line) and {letters}, and any other column of the data. None
            words rows by the prompt style.
        format: "plain", or "chat": as the user's turn in the tokenizer's chat template.
        system: The system's turn before it.

    Raises:
        ValueError: The template does not read, the format is unknown, or there is a system's turn without a chat.

    Example:
        >>> OwnPrompt(template="{text}\\nIs it good?", format="chat", system="Be brief.").format
        'chat'
        >>> OwnPrompt(system="Be brief.")
        Traceback (most recent call last):
        ...
        ValueError: system_prompt has no effect without prompt_format='chat'; a plain prompt says all in prompt_template
    """

    template: str | None = None
    format: PromptFormat = "plain"
    system: str | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(PromptFormat):
            raise ValueError(f"prompt_format is {self.format!r}; allowed: {', '.join(get_args(PromptFormat))}")
        for name, text in (("prompt_template", self.template), ("system_prompt", self.system)):
            if text is not None and not text.strip():
                raise ValueError(f"{name} is empty; leave it out")
        if self.system is not None and self.format != "chat":
            raise ValueError(
                "system_prompt has no effect without prompt_format='chat'; a plain prompt says all in prompt_template"
            )
        _ = self.words

    @cached_property
    def words(self) -> PromptTemplate | None:
        """The template, read."""
        return PromptTemplate.read(self.template) if self.template is not None else None

    @property
    def is_set(self) -> bool:
        """Whether anything is one's own."""
        return self.template is not None or self.format != "plain"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Puts the rows of one task into their prompts.

    Attributes:
        style: Words rows where there is no template of one's own.
        choice_role: What a choice is to its question.
        words: A template of one's own.
        frame: The chat around them; None for none.
    """

    style: PromptStyle
    choice_role: ChoiceRole = "answer"
    words: PromptTemplate | None = None
    frame: ChatFrame | None = None

    @property
    def space(self) -> str:
        """What is written between a prompt and its answer."""
        if self.frame is not None:
            return self.frame.space
        return "" if self.words is not None and self.words.ends_with_line else " "

    def filled(self, records: Records, index: int, own: Mapping[str, str]) -> tuple[str, Span]:
        """A record in the words of the template, and where the text stands that may be cut: the longest of its fields.

        Args:
            records: All records.
            index: Which one.
            own: The fields of its shape.

        Raises:
            ValueError: A column that the template names is missing there, or no text.
        """
        assert self.words is not None
        values = {name: own[name] if name in own else _text_of(records, index, name) for name in self.words.fields}
        text, places = self.words.filled(values)
        spans = [span for name, span in places if name not in WHOLE]
        return text, max(spans, key=lambda span: span[1] - span[0], default=(0, 0))

    def framed(self, text: str, span: Span | None) -> tuple[str, Span | None]:
        """A worded record as it is put to the model, and where the text that may be cut stands then."""
        if self.frame is None:
            return text, span
        content, gone = text.strip(), len(text) - len(text.lstrip())
        start, end = span or (gone, gone + len(content))
        shift = len(self.frame.before) - gone
        first, last = (min(max(place - gone, 0), len(content)) + gone + shift for place in (start, end))
        return f"{self.frame.before}{content}{self.frame.after}", (first, last)


def check_fields(template: PromptTemplate, own: Collection[str], answer: str, sources: Sequence[Records]) -> None:
    """Refuses a template with fields that the rows of a task do not have.

    Args:
        template: The template.
        own: The fields of the rows' shape.
        answer: The column of the right answer, which a prompt must not tell.
        sources: The records of all splits.

    Raises:
        ValueError: It has such fields; the message names them, and those that are there.
    """
    columns = {name: None for records in sources for name in records.rows[0]}
    others = [name for name in columns if name not in own and name != answer]
    unknown = [name for name in template.fields if name not in own and name not in others]
    if not unknown:
        return
    hint = f" ({{{answer}}} is what is asked for)" if answer in unknown else ""
    listed = ", ".join(f"{{{name}}}" for name in [*own, *others[:20]])
    raise ValueError(
        f"prompt_template has {', '.join(f'{{{name}}}' for name in unknown)}{hint}; allowed: {listed}"
        f"{', ...' if len(others) > 20 else ''}"
    )


def _text_of(records: Records, index: int, column: str) -> str:
    """A column that is not of the shape, as text."""
    value = records.rows[index].get(column)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise records.error(index, column, value, "a text or a number, which prompt_template puts into the prompt")
