"""Raw records, from a file or a dataset, checked one by one and turned into a task's rows.

Five shapes of record are known; a file holds one of them. Other columns may be there; they are not read, and the
task says so (`Task.not_read`). Every error names the file (or dataset), the line (or row) counted from 1, the field,
what was given and what is allowed. A record is either used or refused: none is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from varlora.tasks import prompts
from varlora.tasks.chat import Tools, render_chat, render_prompt
from varlora.tasks.own_prompts import Asking
from varlora.tasks.prompt_styles import BLANK
from varlora.tasks.prompt_template import Span
from varlora.tasks.prompts import MARK, span_of
from varlora.tasks.task import OUT_OF_SCOPE, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHAPES: Mapping[Shape, tuple[str, ...]] = {
    "label": ("text", "label"),
    "choice": ("question", "choices", "answer"),
    "yes_no": ("passage", "question", "answer"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}
READ_BESIDE: Mapping[str, tuple[str, ...]] = {"messages": ("tools",)}
"""Columns that are read beside a shape's own where they are there."""
ANSWER_FIELDS: Mapping[str, str] = {"label": "label", "choice": "answer", "yes_no": "answer"}
"""The field that unlabelled records of a shape may lack."""
PROMPT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "label": ("text", "labels"),
    "choice": ("question", "choices", "letters"),
    "yes_no": ("passage", "question", "labels"),
}
"""What a prompt template may name of a shape, beside other columns; classes by letters have "choices" and "letters"."""
LISTED_LABELS = 10
"""A label prompt lists the class names when there are at most this many."""

LabelAnswers = Literal["names", "letters"]
Spanned = tuple[str, Span | None]
"""A text, and where in it what may be cut stands."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """Raw records and what to call them in an error.

    Attributes:
        where: The file, or "dataset:split".
        rows: The records, in order.
        unit: What one record is called: "line" of a file, "row" of a dataset.
        labelled: Whether answers are read. If not, the records may lack them, and every row's label is -1.
        instead: What else can be done where an answer does not fit, to end the error about it.
        first: How many records there are before these, of which they are a part.
        as_given: The records before their columns got our names, where they did (`varlora.tasks.columns`).
    """

    where: str
    rows: Sequence[Mapping[str, Any]]
    unit: str = "line"
    labelled: bool = True
    instead: str = ""
    first: int = 0
    as_given: Sequence[Mapping[str, Any]] | None = None

    def fields(self, shape: Shape) -> tuple[str, ...]:
        """What every record of a shape must hold."""
        return tuple(f for f in SHAPES[shape] if self.labelled or f != ANSWER_FIELDS.get(shape))

    def at(self, index: int) -> str:
        """Where one record is, for an error."""
        return f"{self.where}, {self.unit} {self.first + index + 1}"

    def error(self, index: int, field: str, given: object, allowed: str) -> ValueError:
        """The error about one field of one record, to raise."""
        shown = repr(given)
        shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
        instead = self.instead if field in ANSWER_FIELDS.values() else ""
        return ValueError(f"{self.at(index)}, field {field!r}: got {shown}; allowed: {allowed}{instead}")

    def text(self, index: int, field: str) -> str:
        """A field that must be a string with something in it."""
        value = self.rows[index][field]
        if not isinstance(value, str) or not value.strip():
            raise self.error(index, field, value, "a string that is not empty")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            whole = "whole characters, not the half of one that a cut within an emoji leaves"
            raise self.error(index, field, value[max(0, error.start - 20) : error.end], whole) from error
        return value


def choice_rows(records: Records, asking: Asking, *, repeated: bool) -> list[dict[str, Any]]:
    """Rows of question/choices/answer; `repeated` accepts a wrong choice that occurs twice."""
    rows, style, role = [], asking.style, asking.choice_role
    for index, record in enumerate(records.rows):
        question, choices = records.text(index, "question"), record["choices"]
        if not isinstance(choices, Sequence) or isinstance(choices, str) or not 2 <= len(choices) <= 26:
            raise records.error(index, "choices", choices, "a list of 2 to 26 strings")
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise records.error(index, "choices", choices, "strings that are not empty")
        label = _choice_index(records, index, record["answer"], choices) if records.labelled else OUT_OF_SCOPE
        if len(set(choices)) < len(choices) and (not repeated or choices.count(choices[label]) > 1):
            raise records.error(index, "choices", choices, "choices that all differ")
        text = _worded(prompts.choice_text, question, choices)
        if asking.words is None:
            worded = _worded(style.choice, question, choices, role)
        else:
            own = {"question": question, "choices": prompts.lettered(choices)}
            worded = asking.filled(records, index, {**own, "letters": _listed(prompts.letters(len(choices)))})
            if style.scored is None:
                text = worded
        row = _row(asking, worded, text, label, len(choices))
        if style.scored is not None and asking.words is None and asking.frame is None:
            try:
                row["choices"] = [asdict(scored) for scored in style.scored(question, choices, role)]
            except ValueError as error:
                raise records.error(index, "question", question, str(error)) from error
            if role == "blank":  # what stands before it is in the prompt of every choice
                row["prompt_span"] = (0, question.index(BLANK))
        elif style.scored is not None:
            row["choices"] = [{"prompt": row["prompt"], "text": f"{asking.space}{choice}"} for choice in choices]
        rows.append(row)
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


def yes_no_rows(records: Records, asking: Asking) -> list[dict[str, Any]]:
    """Rows of passage/question/answer; class 0 is no, 1 is yes."""
    rows = []
    for index, record in enumerate(records.rows):
        passage, question = records.text(index, "passage"), records.text(index, "question")
        if records.labelled and not isinstance(record["answer"], bool):
            raise records.error(index, "answer", record["answer"], "true or false")
        if asking.words is None:
            worded, text = (_worded(of, passage, question) for of in (asking.style.yes_no, prompts.yes_no_text))
        else:
            own = {"passage": passage, "question": question, "labels": _listed(prompts.YES_NO)}
            worded = text = asking.filled(records, index, own)
        label = int(record["answer"]) if records.labelled else OUT_OF_SCOPE
        rows.append(_row(asking, worded, text, label, 2))
    return rows


def label_rows(
    records: Records, asking: Asking, names: tuple[str, ...], *, ood: bool, label_answers: LabelAnswers
) -> list[dict[str, Any]]:
    """Rows of text/label for classes of these names; `ood` accepts the label -1."""
    index_of = {name: i for i, name in enumerate(names)}
    numbered = all(name.lstrip("-").isdigit() for name in names)
    listed = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    style = prompts.choice_prompt if label_answers == "letters" else prompts.label_prompt
    shown = names if label_answers == "letters" or len(names) <= LISTED_LABELS else ()
    own = {"labels": _listed(names)}
    if label_answers == "letters":
        own |= {"choices": prompts.lettered(names), "letters": _listed(prompts.letters(len(names)))}
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
        bare: Spanned = (text, (0, len(text)))
        if asking.words is None:
            worded = _worded(style, text, shown)
        else:
            worded = bare = asking.filled(records, index, {**own, "text": text})
        rows.append(_row(asking, worded, bare, number, len(names)))
    return rows


def _worded(words: Callable[..., str], text: str, *rest: Any) -> Spanned:
    """A text in words, with what else they take, and where it stands in them."""
    whole = words(text, *rest)
    return whole, span_of(words(MARK, *rest), whole)


def _row(asking: Asking, worded: Spanned, text: Spanned, label: int, num_choices: int) -> dict[str, Any]:
    """A row with answers to choose from: as a causal LM is asked, and the text that an encoder reads."""
    prompt, prompt_span = asking.framed(*worded)
    spans = {"prompt_span": prompt_span, "text_span": text[1]}
    return {"prompt": prompt, "text": text[0], "label": label, "num_choices": num_choices, **spans}


def _listed(answers: Sequence[str]) -> str:
    return ", ".join(answers)


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
        at, tools = records.at(index), _tools(records, index)
        prompt, completion = render_chat(messages, tokenizer, at, tools=tools)
        asked = _conversation(messages[:-1], tools)
        rows.append({"prompt": prompt, "completion": completion, "conversation": asked})
    return rows


def prompt_rows(records: Records, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, Any]]:
    """Rows of a prompt, or of chat messages, alone; a completion or an assistant's last message is not looked at."""
    rows: list[dict[str, Any]] = []
    chat = any("messages" in record for record in records.rows)
    for index, record in enumerate(records.rows):
        at = records.at(index)
        if ("prompt" in record) is ("messages" in record):
            raise ValueError(f"{at}: got columns {sorted(record)}; allowed: prompt, or messages, one of the two")
        if "prompt" in record:
            prompt = records.text(index, "prompt")
            rows.append({"prompt": prompt, "completion": "", **({"conversation": None} if chat else {})})
        else:
            asked = _asked(_messages(records, index, least=1))
            if not asked:
                raise records.error(index, "messages", record["messages"], "a message before the assistant's")
            tools = _tools(records, index)
            prompt = render_prompt(asked, tokenizer, at, tools=tools)
            rows.append({"prompt": prompt, "completion": "", "conversation": _conversation(asked, tools)})
    return rows


def writes_tools(records: Records, index: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes a record's tools into its prompt."""
    asked = _asked(_messages(records, index, least=1))
    at, tools = records.at(index), _tools(records, index)
    return render_prompt(asked, tokenizer, at, tools=tools) != render_prompt(asked, tokenizer, at)


def _asked(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages before the answer."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def read_conversation(conversation: str) -> tuple[list[Mapping[str, Any]], Tools]:
    """The messages and the tools of a row's `conversation`, which its prompt was written from."""
    read: dict[str, Any] = json.loads(conversation)
    return read["messages"], read["tools"]


def _conversation(messages: Sequence[Mapping[str, Any]], tools: Tools) -> str:
    return json.dumps({"messages": list(messages), "tools": tools}, ensure_ascii=False)


def _tools(records: Records, index: int) -> Tools:
    """A record's tools, which may be written as JSON in a string, as data sets of one type a column do."""
    tools = records.rows[index].get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise records.error(index, "tools", tools, "a JSON list of objects") from error
    if not tools and (tools is None or isinstance(tools, list)):
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise records.error(index, "tools", tools, "a list of objects, each the JSON schema of a function")
    return list(tools)


def _messages(records: Records, index: int, *, least: int) -> Sequence[Mapping[str, Any]]:
    """A record's messages, which must be well formed."""
    messages = records.rows[index]["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < least:
        number = "two" if least == 2 else "one"
        raise records.error(index, "messages", messages, f"a list of {number} or more messages")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise records.error(index, "messages", message, 'objects with "role" and "content"')
        calls = message.get("tool_calls")  # a turn that calls a function may say nothing else
        if calls and message["content"] in (None, ""):
            continue
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise records.error(index, "messages", message, "a content that is a string and not empty")
    return messages
