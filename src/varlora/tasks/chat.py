"""A conversation as a prompt and its completion, written by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_chat(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase | None, where: str
) -> tuple[str, str]:
    """Split a conversation before its last message.

    Args:
        messages: `role` and `content` each; the last one is the assistant's.
        tokenizer: Its chat template writes the text.
        where: What to call the record in an error.

    Returns:
        The prompt (up to where the assistant speaks) and the completion (the last message with the
        template's end of turn).

    Raises:
        ValueError: If there is no tokenizer or template, or the template refuses the messages or writes the
            earlier ones differently once the answer is there.
    """
    prompt = render_prompt(messages[:-1], tokenizer, where)
    assert tokenizer is not None
    whole = _rendered(messages, tokenizer, where, add_generation_prompt=False)
    if not whole.startswith(prompt) or whole == prompt:
        raise ValueError(
            f"{where}, field 'messages': the chat template of {tokenizer.name_or_path!r} writes the earlier "
            "messages differently once the answer follows; write the rows as prompt/completion"
        )
    return prompt, whole[len(prompt) :]


def render_prompt(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase | None, where: str) -> str:
    """A conversation up to where the assistant speaks.

    Args:
        messages: `role` and `content` each; the assistant is to answer the last one.
        tokenizer: Its chat template writes the text.
        where: What to call the record in an error.

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
    return _rendered(messages, tokenizer, where, add_generation_prompt=True)


def _rendered(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    *,
    add_generation_prompt: bool,
) -> str:
    from jinja2 import TemplateError

    conversation = [dict(message) for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except TemplateError as error:
        raise ValueError(f"{where}, field 'messages': the chat template refuses it: {error}") from error
