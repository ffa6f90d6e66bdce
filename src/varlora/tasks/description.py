"""What a task says of its rows, so that more of them can be read alike: kept with what was trained on them.

`encode` leaves it with the rows that it encodes, `varlora.VariationalCallback` notes it when training begins, and
`posterior.json` holds it (`meta.task`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from typing_extensions import Self

from varlora.io.files import misfit_of
from varlora.tasks.chat import chat_frame
from varlora.tasks.own_prompts import Asking, OwnPrompt
from varlora.tasks.prompt_styles import ChoiceRole, style_of

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from varlora.tasks.encode import Family, Truncation
    from varlora.tasks.own_prompts import PromptFormat
    from varlora.tasks.rows import LabelAnswers
    from varlora.tasks.task import Shape, Task, TaskKind

_MARK = "varlora.task"
"""The key under which a data set's own description holds ours."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a causal language model is asked.

    Attributes:
        prompt_style: the style (`varlora.tasks.prompt_styles`); only questions have more than one.
        label_answers: how a class is named: by its "names" or by "letters" (two each for more than 26 classes).
        choice_role: what a choice is to its question, by which some styles go: WinoGrande's fill a blank.
        prompt_template, prompt_format, system_prompt: words and turns of the user's own around rows with answers.
    """

    prompt_style: str = "varlora"
    label_answers: LabelAnswers = "names"
    choice_role: ChoiceRole = "answer"
    prompt_template: str | None = None
    prompt_format: PromptFormat = "plain"
    system_prompt: str | None = None

    @classmethod
    def of(cls, own: OwnPrompt | None, **given: Any) -> Self:
        """A wording with the user's own words and turns, and the other fields as given."""
        own = own or OwnPrompt()
        return cls(prompt_template=own.template, prompt_format=own.format, system_prompt=own.system, **given)

    @property
    def own(self) -> OwnPrompt:
        """The words and turns of the user's own."""
        return OwnPrompt(template=self.prompt_template, format=self.prompt_format, system=self.system_prompt)

    def asking(self, tokenizer: PreTrainedTokenizerBase | None) -> Asking:
        """How rows are put to a model with this tokenizer.

        Raises:
            ValueError: The style is unknown, or the tokenizer has no chat template that takes these turns.
        """
        style, frame = style_of(self.prompt_style), None
        if self.prompt_format == "chat":
            frame = chat_frame(tokenizer, self.system_prompt)
        return Asking(style=style, choice_role=self.choice_role, words=self.own.words, frame=frame)


class _WordingForm(TypedDict, total=False):
    prompt_style: str
    label_answers: Literal["names", "letters"]
    choice_role: Literal["answer", "ending", "blank"]
    prompt_template: str | None
    prompt_format: Literal["plain", "chat"]
    system_prompt: str | None


class _MoreOfForm(TypedDict, total=False):
    shape: Literal["label", "choice", "yes_no", "completion", "messages"] | None


class _Form(_MoreOfForm):
    name: str
    kind: Literal["choice", "label", "completion"]
    answers: list[str]
    final_answer: Literal["number", "text"] | None
    wording: _WordingForm | None
    family: Literal["causal", "encoder"]
    max_length: int | None
    truncation: Literal["error", "left", "right"]


@dataclass(frozen=True, kw_only=True)
class TaskDescription:
    """A task without its rows: what it takes to read others as its own were read.

    Attributes:
        name: the task's.
        kind: "choice", "label" or "completion".
        answers: names of the classes.
        final_answer: how the final answer of a completion is read; None where it has none.
        wording: how its prompts were worded; None where the task was not made by `build_task`.
        family: of the model that read them.
        max_length: most tokens in a row; None is the model's context.
        truncation: what was done with longer rows.
        shape: of its records; None where the task was not made by `build_task`.
    """

    name: str
    kind: TaskKind
    answers: tuple[str, ...]
    final_answer: Literal["number", "text"] | None
    wording: Wording | None
    family: Family
    max_length: int | None = None
    truncation: Truncation = "error"
    shape: Shape | None = None

    @classmethod
    def of(
        cls, task: Task, *, family: Family = "causal", max_length: int | None = None, truncation: Truncation = "error"
    ) -> Self:
        """The description of a task whose rows are encoded in this way.

        Example:
            >>> import datasets
            >>> from varlora.tasks import Task
            >>> rows = datasets.Dataset.from_dict({"id": ["0"], "prompt": ["2 + 2 ="], "completion": [" 4"]})
            >>> TaskDescription.of(Task(name="sums", kind="completion", answers=(), splits={"test": rows})).kind
            'completion'
        """
        return cls(
            name=task.name,
            kind=task.kind,
            answers=task.answers,
            final_answer=task.final_answer,
            wording=task.wording,
            family=family,
            max_length=max_length,
            truncation=truncation,
            shape=task.shape,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            ValueError: it is of another form; the message says where.

        Example:
            >>> TaskDescription.from_dict({"name": "sums"})
            Traceback (most recent call last):
            ValueError: the task's description lacks answers, family, final_answer, kind, max_length, truncation, ...
        """
        if (misfit := misfit_of(values, _Form, "the task's description")) is not None:
            raise ValueError(f"{misfit}.")
        wording = values["wording"]
        plain = set(values).intersection(_Form.__annotations__).difference(("answers", "wording"))
        return cls(
            **{name: values[name] for name in plain},
            answers=tuple(values["answers"]),
            wording=None if wording is None else Wording(**{n: wording[n] for n in wording if n in _WORDS}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "answers": list(self.answers)}

    def attached(self) -> str:
        """What a data set's own description says of it (`datasets.DatasetInfo.description`)."""
        return json.dumps({_MARK: self.to_dict()})


_WORDS = tuple(_WordingForm.__annotations__)


def description_of(rows: datasets.Dataset | Any) -> TaskDescription | None:
    """What encoded rows say of their task; None of rows that `encode` has not made.

    Args:
        rows: a data set, which may be inside others that have it as `dataset` (`torch.utils.data.Subset`).
    """
    while not hasattr(rows, "info") and hasattr(rows, "dataset"):
        rows = rows.dataset
    text = getattr(getattr(rows, "info", None), "description", None)
    if not isinstance(text, str) or not text.startswith(f'{{"{_MARK}"'):
        return None
    try:
        return TaskDescription.from_dict(json.loads(text)[_MARK])
    except ValueError:  # several data sets' in one, of which no one is that of all
        return None
