"""Text of tokens, one after the other: what may be shown so far, and whether a stop string has come."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # part of a character whose other bytes are in the next tokens
_CONTEXT = 5


class TextStream:
    """Decodes tokens as they come. Only a few tokens are decoded again with each new one.

    Args:
        tokenizer: of the model.
        before: tokens of the prompt that the text continues; a tokenizer may drop a space that begins a text.
        stops: strings that end the text, and are not part of it.

    Attributes:
        text: all of it, up to a stop string.
        offsets: for each token, how many characters were there before it.
        stopped: whether a stop string has come.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = (), stops: Sequence[str] = ()
    ) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self._tokens = list(before[-_CONTEXT:])
        self._start, self._read = 0, len(self._tokens)
        self._shown = 0
        self.text = ""
        self.offsets: list[int] = []
        self.stopped = False

    def push(self, token: int) -> None:
        """The next token."""
        self.offsets.append(len(self.text))
        if self.stopped:
            return
        self._tokens.append(token)
        former = self._decoded(self._tokens[self._start : self._read])
        now = self._decoded(self._tokens[self._start :])
        if len(now) > len(former) and not now.endswith(_INCOMPLETE):
            self._append(now[len(former) :])
            self._start, self._read = self._read, len(self._tokens)

    def end(self) -> None:
        """No token comes any more: a character that was not completed is shown as it is."""
        if not self.stopped:
            former = self._decoded(self._tokens[self._start : self._read])
            self._append(self._decoded(self._tokens[self._start :])[len(former) :])
            self._start = self._read = len(self._tokens)

    def take(self, *, last: bool = False) -> str:
        """What has not been taken and can be shown: all but what may be the beginning of a stop string.

        Args:
            last: whether the text has ended, so that all can be shown.
        """
        end = len(self.text)
        if not last and not self.stopped:
            end -= max(
                (held for stop in self.stops for held in range(1, len(stop)) if self.text.endswith(stop[:held])),
                default=0,
            )
        new = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return new

    def _append(self, new: str) -> None:
        searched = max(len(self.text) - max(map(len, self.stops), default=0), 0)
        self.text += new
        found = [at for stop in self.stops if (at := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
