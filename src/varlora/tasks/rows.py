"""Raw records, from a file or a dataset, checked one by one and turned into a task's rows.

Five shapes of record are known; a file holds one of them. Other columns may be there and are not read. Every
error names the file (or dataset), the line (or row) counted from 1, the field, what was given and what is
allowed. A record is either used or refused: none is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from varlora.tasks import prompts
from varlora.tasks.chat import render_chat, render_prompt
from varlora.tasks.prompt_styles import PROMPT_STYLES, PromptStyle
from varlora.tasks.task import OUT_OF_SCOPE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHAPES: Mapping[str, tuple[str, ...]] = {
    "label": ("text", "label"),
    "choice": ("question", "choices", "answer"),
    "yes_no": ("passage", "question", "answer"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}
ANSWER_FIELDS: Mapping[str, str] = {"label": "label", "choice": "answer", "yes_no": "answer"}
"""The field that unlabelled records of a shape may lack."""
LISTED_LABELS = 10
"""A label prompt lists the class names when there are at most this many."""

LabelAnswers = Literal["names", "letters"]


@dataclass(frozen=True, kw_only=True)
class Records:
    """Raw records and what to call them in an error.

    Attributes:
        where: The file, or "dataset:split".
        rows: The records, in order.
        unit: What one record is called: "line" of a file, "row" of a dataset.
        labelled: Whether answers are read. If not, the records may lack them, and every row's label is -1.
    """

    where: str
    rows: Sequence[Mapping[str, Any]]
    unit: str = "line"
    labelled: bool = True

    def fields(self, shape: str) -> tuple[str, ...]:
        """What every record of a shape must hold."""
        return tuple(f for f in SHAPES[shape] if self.labelled or f != ANSWER_FIELDS.get(shape))

    def error(self, index: int, field: str, given: object, allowed: str) -> ValueError:
        """The error about one field of one record, to raise."""
        shown = repr(given)
        shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
        return ValueError(f"{self.where}, {self.unit} {index + 1}, field {field!r}: got {shown}; allowed: {allowed}")

    def text(self, index: int, field: str) -> str:
        """A field that must be a string with something in it."""
        value = self.rows[index][field]
        if not isinstance(value, str) or not value.strip():
            raise self.error(index, field, value, "a string that is not empty")
        return value


def choice_rows(
    records: Records,
    *,
    repeated: bool = False,
    style: PromptStyle = PROMPT_STYLES["varlora"],
    fills_blank: bool = False,
) -> list[dict[str, Any]]:
    """Rows of question/choices/answer.

    Args:
        records: The records.
        repeated: Accept a wrong choice that occurs twice.
        style: How they are worded.
        fills_blank: Whether the choices fill a blank in the question.
    """
    rows = []
    for index, record in enumerate(records.rows):
        question, choices = records.text(index, "question"), record["choices"]
        if not isinstance(choices, Sequence) or isinstance(choices, str) or not 2 <= len(choices) <= 26:
            raise records.error(index, "choices", choices, "a list of 2 to 26 strings")
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise records.error(index, "choices", choices, "strings that are not empty")
        label = _choice_index(records, index, record["answer"], choices) if records.labelled else OUT_OF_SCOPE
        if len(set(choices)) < len(choices) and (not repeated or choices.count(choices[label]) > 1):
            raise records.error(index, "choices", choices, "choices that all differ")
        rows.append(
            {
                "prompt": style.choice(question, choices, fills_blank),
                "text": prompts.choice_text(question, choices),
                "label": label,
                "num_choices": len(choices),
            }
        )
    return rows


def _choice_index(records: Records, index: int, answer: object, choices: Sequence[str]) -> int:
    letters = prompts.LETTERS[: len(choices)]
    allowed = f"an index from 0 to {len(choices) - 1}, a letter from A to {letters[-1]}, or a choice's text"
    if isinstance(answer, str):
        readings = {choices.index(answer)} if answer in choices else set()
        if len(answer) == 1 and answer in letters:
            readings.add(letters.index(answer))
        if len(readings) == 2:
            raise records.error(index, "answer", answer, "an index (this is one choice's letter and another's text)")
        if readings:
            return readings.pop()
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise records.error(index, "answer", answer, allowed)


def yes_no_rows(records: Records, *, style: PromptStyle = PROMPT_STYLES["varlora"]) -> list[dict[str, Any]]:
    """Rows of passage/question/answer; class 0 is no, 1 is yes."""
    rows = []
    for index, record in enumerate(records.rows):
        passage, question = records.text(index, "passage"), records.text(index, "question")
        if records.labelled and not isinstance(record["answer"], bool):
            raise records.error(index, "answer", record["answer"], "true or false")
        rows.append(
            {
                "prompt": style.yes_no(passage, question),
                "text": prompts.yes_no_text(passage, question),
                "label": int(record["answer"]) if records.labelled else OUT_OF_SCOPE,
                "num_choices": 2,
            }
        )
    return rows


def label_rows(
    records: Records, names: tuple[str, ...], *, ood: bool, label_answers: LabelAnswers
) -> list[dict[str, Any]]:
    """Rows of text/label for classes of these names; `ood` accepts the label -1."""
    index_of = {name: i for i, name in enumerate(names)}
    numbered = all(name.lstrip("-").isdigit() for name in names)
    listed = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    rows = []
    for index, record in enumerate(records.rows):
        text = records.text(index, "text")
        label: Any = record["label"] if records.labelled else OUT_OF_SCOPE
        is_int = isinstance(label, int) and not isinstance(label, bool)
        if not records.labelled:
            number = OUT_OF_SCOPE
        elif is_int and label == OUT_OF_SCOPE and "-1" not in index_of:
            if not ood:
                raise records.error(index, "label", label, f"{listed} (-1 marks out of scope: name the split as such)")
            number = OUT_OF_SCOPE
        elif isinstance(label, str) and label in index_of:
            number = index_of[label]
        elif is_int and numbered and str(label) in index_of:
            number = index_of[str(label)]
        elif is_int and not numbered and 0 <= label < len(names):
            number = label
        else:
            raise records.error(index, "label", label, listed if numbered else f"{listed}, or 0 to {len(names) - 1}")
        if label_answers == "letters":
            prompt = prompts.choice_prompt(text, names)
        else:
            prompt = prompts.label_prompt(text, names if len(names) <= LISTED_LABELS else ())
        rows.append({"prompt": prompt, "text": text, "label": number, "num_choices": len(names)})
    return rows


def completion_rows(records: Records) -> list[dict[str, Any]]:
    """Rows of prompt/completion."""
    return [
        {"prompt": records.text(index, "prompt"), "completion": records.text(index, "completion")}
        for index in range(len(records.rows))
    ]


def message_rows(records: Records, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, Any]]:
    """Rows of chat messages, as prompt and completion."""
    rows = []
    for index in range(len(records.rows)):
        messages = _messages(records, index, least=2)
        if messages[-1]["role"] != "assistant":
            raise records.error(index, "messages", messages[-1], "a last message whose role is assistant")
        prompt, completion = render_chat(messages, tokenizer, f"{records.where}, {records.unit} {index + 1}")
        rows.append({"prompt": prompt, "completion": completion})
    return rows


def prompt_rows(records: Records, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, Any]]:
    """Rows of a prompt, or of chat messages, alone; a completion or an assistant's last message is not looked at."""
    rows = []
    for index, record in enumerate(records.rows):
        at = f"{records.where}, {records.unit} {index + 1}"
        if ("prompt" in record) is ("messages" in record):
            raise ValueError(f"{at}: got columns {sorted(record)}; allowed: prompt, or messages, one of the two")
        if "prompt" in record:
            prompt = records.text(index, "prompt")
        else:
            messages = _messages(records, index, least=1)
            asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
            if not asked:
                raise records.error(index, "messages", messages, "a message before the assistant's")
            prompt = render_prompt(asked, tokenizer, at)
        rows.append({"prompt": prompt, "completion": ""})
    return rows


def _messages(records: Records, index: int, *, least: int) -> Sequence[Mapping[str, Any]]:
    """A record's messages, which must be well formed."""
    messages = records.rows[index]["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < least:
        number = "two" if least == 2 else "one"
        raise records.error(index, "messages", messages, f"a list of {number} or more messages")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise records.error(index, "messages", message, 'objects with "role" and "content"')
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise records.error(index, "messages", message, "a content that is a string and not empty")
    return messages
