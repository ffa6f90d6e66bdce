"""Raw rows as a finished run's own: worded, and cut, by the code that does it in training."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from varlora.runs.base_model import tokenizer_name
from varlora.runs.config import RunConfig
from varlora.runs.data import load_new_rows
from varlora.runs.folder import RunFolder
from varlora.tasks import Task
from varlora.tasks.prompts import YES_NO
from varlora.tasks.rows import Records

SPLIT = "input"
"""What rows without an id are called by, before their position."""


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Reads rows for a run, part by part.

    Attributes:
        run: the run.
        config: its settings as they are now.
    """

    run: RunFolder
    config: RunConfig
    _logged: set[str] = field(default_factory=set)

    @property
    def kind(self) -> str:
        """What is asked: "label", "choice" or "completion"."""
        kind: str = self.run.facts["task"]["kind"]
        return kind

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in order; letters for choices, none for completions."""
        return tuple(self.run.facts["task"]["answers"])

    @property
    def field_of_text(self) -> str | None:
        """The field that a bare text stands in; None where a row is more than a text."""
        if self.kind == "label":
            words = self.config.own_prompt.words
            named = words.fields if words is not None else ("text",)
            shape = self.run.facts["task"].get("shape")
            is_text = self.classes != YES_NO if shape is None else shape == "label"  # older folders do not say it
            return named[0] if len(named) == 1 and is_text else None
        return "prompt" if self.kind == "completion" else None

    def read(self, records: Records) -> Task:
        """The rows as the split "input" of the run's task; columns that are not read are logged once.

        Raises:
            ValueError: a row does not fit; the message says which, and why.
        """
        return load_new_rows(
            records,
            self.run,
            split=SPLIT,
            labelled=records.labelled,
            tokenizer=self._chat_tokenizer,
            logged=self._logged,
        )

    @cached_property
    def _chat_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The run's own tokenizer, whose chat template writes prompts."""
        if self.kind != "completion" and self.config.prompt_format != "chat":
            return None
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer_name(self.config, self.run.path))
        return tokenizer
