"""A conversation as a prompt and its completion, written by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from varlora.tasks.prompts import MARK, span_of

SYSTEM = ("system", "developer")
"""Roles of the turns before a conversation, which tell the assistant what it is."""
Tools: TypeAlias = Sequence[Mapping[str, Any]] | None
ANSWER = "\ue001"
"""Stands where an answer will stand, to find its place in a chat; a character that no text has."""


@dataclass(frozen=True, kw_only=True)
class ChatFrame:
    """What a chat template writes around a user's turn, up to the assistant's first word.

    Attributes:
        before: What stands before the turn's text, the system's turn in it.
        after: What stands behind it.
        space: Spaces between that and the answer.
    """

    before: str
    after: str
    space: str


def chat_frame(tokenizer: PreTrainedTokenizerBase | None, system: str | None = None) -> ChatFrame:
    """The chat around one question, as the tokenizer's template writes it with an answer behind it.

    Args:
        tokenizer: The model's tokenizer.
        system: The system's turn; None leaves it to the template.

    Raises:
        ValueError: There is no tokenizer or template, or the template does not take or write these turns.
    """
    where = "prompt_format='chat'"
    if tokenizer is None:
        raise ValueError(f"{where} needs a tokenizer with a chat template, and no tokenizer was given")
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where}: the tokenizer {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model, "
            "or leave prompt_format out"
        )
    turns = [{"role": "user", "content": MARK}, {"role": "assistant", "content": ANSWER}]
    alone = _frame_of(_rendered(turns, tokenizer, where, tools=None, add_generation_prompt=False))
    frame = alone
    if system is not None:
        with_system = [{"role": "system", "content": system}, *turns]
        instead = "leave system_prompt out, or write it at the start of prompt_template"
        try:
            frame = _frame_of(_rendered(with_system, tokenizer, where, tools=None, add_generation_prompt=False))
        except ValueError as error:
            raise ValueError(f"{error}. It takes no system turn: {instead}") from error
        if frame is not None and system.strip() not in frame.before:
            raise ValueError(f"the chat template of {tokenizer.name_or_path!r} does not write a system turn; {instead}")
    if frame is None:
        raise ValueError(
            f"{where}: the chat template of {tokenizer.name_or_path!r} does not write a user's turn and an answer once "
            "each; leave prompt_format out"
        )
    return frame


def _frame_of(text: str) -> ChatFrame | None:
    """The frame in a rendered chat; None if it does not show."""
    if text.count(MARK) != 1 or text.count(ANSWER) != 1 or text.index(ANSWER) < text.index(MARK):
        return None
    before, after = text.partition(ANSWER)[0].split(MARK)
    bare = after.rstrip(" ")
    return ChatFrame(before=before, after=bare, space=after[len(bare) :])


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None,
    where: str,
    *,
    tools: Tools = None,
) -> tuple[str, str]:
    """Split a conversation before its last message.

    Args:
        messages: `role` and `content` each; the last one is the assistant's.
        tokenizer: Its chat template writes the text.
        where: What to call the record in an error.
        tools: The functions that the assistant may call, as JSON schemas.

    Returns:
        The prompt (up to where the assistant speaks) and the completion (the last message with the
        template's end of turn).

    Raises:
        ValueError: If there is no tokenizer or template, or the template refuses the messages or writes the
            earlier ones differently once the answer is there.
    """
    prompt = render_prompt(messages[:-1], tokenizer, where, tools=tools)
    assert tokenizer is not None
    whole = _rendered(messages, tokenizer, where, tools=tools, add_generation_prompt=False)
    if not whole.startswith(prompt) or whole == prompt:
        raise ValueError(
            f"{where}, field 'messages': the chat template of {tokenizer.name_or_path!r} writes the earlier "
            "messages differently once the answer follows; write the rows as prompt/completion"
        )
    return prompt, whole[len(prompt) :]


def render_prompt(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None,
    where: str,
    *,
    tools: Tools = None,
) -> str:
    """A conversation up to where the assistant speaks.

    Args:
        messages: `role` and `content` each; the assistant is to answer the last one.
        tokenizer: Its chat template writes the text.
        where: What to call the record in an error.
        tools: The functions that the assistant may call, as JSON schemas.

    Raises:
        ValueError: If there is no tokenizer or template, or the template refuses the messages.
    """
    if tokenizer is None:
        raise ValueError(f"{where}: messages need a tokenizer with a chat template, and no tokenizer was given")
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where}: the tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "use an instruction-tuned model, or write the rows as prompt/completion"
        )
    return _rendered(messages, tokenizer, where, tools=tools, add_generation_prompt=True)


def shorter_conversations(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The conversation without its oldest turns, ever more of them; system turns and the last question stay.

    What is left begins with a user's turn, so that a template which wants user and assistant by turns accepts it.

    Example:
        >>> turns = [{"role": role, "content": "..."} for role in ("system", "user", "assistant", "user")]
        >>> [[message["role"] for message in shorter] for shorter in shorter_conversations(turns)]
        [['system', 'user']]
    """
    first = next((i for i, message in enumerate(messages) if message["role"] not in SYSTEM), len(messages))
    for start in range(first + 1, len(messages)):
        if messages[start]["role"] == "user":
            yield [*messages[:first], *messages[start:]]


def last_content(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, where: str, *, tools: Tools = None
) -> tuple[int, int] | None:
    """Where the last message's content stands in `render_prompt`, in characters; None where that cannot be told."""
    prompt = render_prompt(messages, tokenizer, where, tools=tools)
    marked = render_prompt([*messages[:-1], {**messages[-1], "content": MARK}], tokenizer, where, tools=tools)
    return span_of(marked, prompt)


def _rendered(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    *,
    tools: Tools,
    add_generation_prompt: bool,
) -> str:
    from jinja2 import TemplateError

    conversation = [dict(message) for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                conversation,
                tools=None if tools is None else [dict(tool) for tool in tools],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )
    except TemplateError as error:
        raise ValueError(f"{where}: the chat template refuses the messages: {error}") from error
